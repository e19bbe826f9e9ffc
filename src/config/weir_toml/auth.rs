//! `[auth]`

use super::{Listen, is_web_url};
use crate::config::routing::from_folder;
use crate::config::walk::Table;
use crate::engine::catalog::SecretRef;
use std::path::Path;
use std::time::Duration;

/// Who may call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Auth {
    /// Which credentials are taken.
    pub mode: AuthMode,
    /// How JWTs are checked; always there when the mode takes them.
    pub jwt: Option<Jwt>,
}

/// Which credentials are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthMode {
    /// weir's own keys.
    Keys,
    /// JWTs.
    Jwt,
    /// Both.
    KeysAndJwt,
    /// None are asked for. Only with loopback listeners.
    Open,
}

/// How JWTs are checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Jwt {
    /// `iss` must be this.
    pub issuer: Box<str>,
    /// `aud` must hold one of these.
    pub audience: Vec<Box<str>>,
    /// What signs them.
    pub keys: JwtKeys,
    /// Which claims say who calls.
    pub claims: Claims,
    /// How far clocks may differ.
    pub leeway: Duration,
}

/// What signs JWTs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JwtKeys {
    /// The issuer's published keys (RS256, ES256, EdDSA), by URL.
    Jwks(Box<str>),
    /// A shared secret (HS256).
    Secret(SecretRef),
}

/// Names of claims; a dot reaches into an object (`realm_access.tier`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// Who calls.
    pub user: Box<str>,
    /// The account that pays; `None`: the user is the account.
    pub account: Option<Box<str>>,
    /// The tier; `None`: the default one.
    pub tier: Option<Box<str>>,
}

impl AuthMode {
    /// Whether weir's own keys are taken.
    pub const fn takes_keys(self) -> bool {
        matches!(self, AuthMode::Keys | AuthMode::KeysAndJwt)
    }

    /// Whether JWTs are taken.
    pub const fn takes_jwt(self) -> bool {
        matches!(self, AuthMode::Jwt | AuthMode::KeysAndJwt)
    }
}

/// Clocks of machines that keep time differ by less.
const LEEWAY: Duration = Duration::from_secs(60);

pub(super) fn read(root: &mut Table<'_>, listen: &Listen, folder: &Path) -> Auth {
    const MODES: [(&str, AuthMode); 4] =
        [("keys", AuthMode::Keys), ("jwt", AuthMode::Jwt), ("keys+jwt", AuthMode::KeysAndJwt), ("open", AuthMode::Open)];
    let mut auth = Auth { mode: AuthMode::Keys, jwt: None };
    let Some(mut table) = root.table("auth") else { return auth };
    auth.mode = table.choice("mode", &MODES).unwrap_or(AuthMode::Keys);
    if auth.mode == AuthMode::Open && listen.proxy.iter().any(|address| !address.ip().is_loopback()) {
        table.problem(
            "mode",
            "\"open\" serves everybody who can connect, so listen.proxy may only have loopback addresses (127.0.0.1, [::1]) with it",
        );
    }
    match table.table("jwt") {
        Some(mut own) => {
            auth.jwt = jwt(&mut own, folder);
            own.finish();
        }
        None if auth.mode.takes_jwt() && !table.has("jwt") => {
            table.problem("jwt", "missing; this mode needs [auth.jwt] with issuer, audience, and jwks or secret");
        }
        None => {}
    }
    table.finish();
    auth
}

fn jwt(table: &mut Table<'_>, folder: &Path) -> Option<Jwt> {
    table.require("issuer", "\"https://login.example.com\"");
    table.require("audience", "\"weir\"");
    let issuer = table.string("issuer");
    let audience = match table.type_of("audience") {
        Some("array") => table.strings("audience"),
        _ => table.string("audience").map(|one| vec![one]),
    };
    if audience.as_ref().is_some_and(|list| list.iter().any(|one| one.is_empty()) || list.is_empty()) || issuer == Some("") {
        table.problem("", "issuer and audience must not be empty: every token of anybody would pass");
    }
    let jwks = table.string("jwks");
    let secret = table.secret("secret").map(|secret| from_folder(secret, folder));
    let keys = match (jwks, secret) {
        (Some(_), Some(_)) => {
            table.problem("secret", "there is jwks too; tokens are checked by one or the other");
            None
        }
        (Some(url), None) => {
            if !is_web_url(url) || !(url.starts_with("https://") || is_loopback(url)) {
                table.problem("jwks", "must be an https:// URL (http:// only on this machine): whoever can change it can let anybody in");
            }
            Some(JwtKeys::Jwks(url.into()))
        }
        (None, Some(secret)) => Some(JwtKeys::Secret(secret)),
        (None, None) => {
            if !table.has("jwks") && !table.has("secret") {
                table.problem("jwks", "missing; write jwks = \"https://…/jwks.json\", or secret = \"env:NAME\" for HS256");
            }
            None
        }
    };
    let claims = claims(table);
    let leeway = table.duration("leeway").unwrap_or(LEEWAY);
    if leeway > Duration::from_secs(600) {
        table.problem("leeway", "must not be longer than \"10m\": expired tokens pass that long");
    }
    Some(Jwt { issuer: issuer?.into(), audience: audience?.into_iter().map(Box::from).collect(), keys: keys?, claims, leeway })
}

fn claims(table: &mut Table<'_>) -> Claims {
    let mut claims = Claims { user: "sub".into(), account: None, tier: None };
    let Some(mut own) = table.table("claims") else { return claims };
    claims.user = own.string("user").unwrap_or("sub").into();
    claims.account = own.string("account").map(Box::from);
    claims.tier = own.string("tier").map(Box::from);
    own.finish();
    claims
}

fn is_loopback(url: &str) -> bool {
    let plain = url.split(['?', '#']).next().unwrap_or_default();
    crate::engine::catalog::BaseUrl::parse(plain).is_ok_and(|url| url.is_loopback())
}
