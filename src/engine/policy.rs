//! May this caller use this?
//!
//! Two lists decide: the tier (what a subscription opens) and the key's scopes (what the key was cut down to). Both must
//! agree. A caller without a tier is bound by its scopes alone.

use super::catalog::{Catalog, Level, Model, Tier};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What a key may be used for. `None`: everything its tier opens.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scopes {
    /// Paths, such as `/v1/embeddings`; a final `*` stands for any rest. Of self-service only what changes something
    /// (`/weir/v1/keys*`) needs to be among them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paths: Option<Vec<Box<str>>>,
    /// Models by the callers' name; a final `*` stands for any rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub models: Option<Vec<Box<str>>>,
    /// Levels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub levels: Option<Vec<Box<str>>>,
}

/// No restriction at all.
pub const OPEN: Scopes = Scopes { paths: None, models: None, levels: None };

/// Whose key a caller wants to pay with (`X-Weir-Byok`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ByokWish {
    /// Own keys first, then the platform's.
    Prefer,
    /// Own keys only.
    Require,
    /// The platform's keys only.
    Never,
    /// Nothing was said: as [`ByokWish::Prefer`] where the tier has own keys.
    #[default]
    Unspecified,
}

/// Whose keys may pay, once the tier has been asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payers {
    /// The platform's only.
    Platform,
    /// The caller's own where there is one, else the platform's.
    OwnFirst,
    /// The caller's own only.
    Own,
}

/// Why a model is closed to a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed<'a> {
    /// The key's scopes do not name it.
    Scope,
    /// The tier does not open it; the tier that does, when the model names one.
    Tier(Option<&'a Arc<str>>),
}

impl Scopes {
    /// Nothing is restricted.
    pub fn is_open(&self) -> bool {
        self.paths.is_none() && self.models.is_none() && self.levels.is_none()
    }

    /// Whether the path (without its query) may be called.
    pub fn allows_path(&self, path: &str) -> bool {
        allows(self.paths.as_deref(), path)
    }

    /// Whether the model may be asked.
    pub fn allows_model(&self, model: &str) -> bool {
        allows(self.models.as_deref(), model)
    }

    /// Whether the level may be asked.
    pub fn allows_level(&self, level: &str) -> bool {
        allows(self.levels.as_deref(), level)
    }
}

/// Whether the level is open to the caller.
pub fn may_use_level<'a>(tier: Option<&Tier>, scopes: &Scopes, level: &Level) -> Result<(), Closed<'a>> {
    if !scopes.allows_level(&level.name) {
        return Err(Closed::Scope);
    }
    let listed = |tier: &Tier| tier.levels.as_ref().is_none_or(|levels| levels.contains(&level.name));
    if tier.is_none_or(listed) { Ok(()) } else { Err(Closed::Tier(None)) }
}

/// Whether the model is open to the caller. `min_tier` is the model's, `None` for a name nobody configured.
pub fn may_use_model<'a>(
    tier: Option<&Tier>,
    scopes: &Scopes,
    model: &str,
    min_tier: Option<&'a (u32, Arc<str>)>,
) -> Result<(), Closed<'a>> {
    if !scopes.allows_model(model) {
        return Err(Closed::Scope);
    }
    let Some(tier) = tier else { return Ok(()) };
    if let Some((rank, name)) = min_tier
        && tier.rank < *rank
    {
        return Err(Closed::Tier(Some(name)));
    }
    let listed = tier.models.as_ref().is_none_or(|models| models.contains(model));
    if listed { Ok(()) } else { Err(Closed::Tier(None)) }
}

/// Whose keys may pay. `None`: own keys were required and the tier does not have them.
pub fn payers(tier: Option<&Tier>, wish: ByokWish) -> Option<Payers> {
    let byok = tier.is_none_or(|tier| tier.byok);
    match wish {
        ByokWish::Never => Some(Payers::Platform),
        ByokWish::Require => byok.then_some(Payers::Own),
        ByokWish::Prefer | ByokWish::Unspecified if byok => Some(Payers::OwnFirst),
        ByokWish::Prefer | ByokWish::Unspecified => Some(Payers::Platform),
    }
}

/// The configured models this caller may use, in no order.
pub fn open_models<'a>(catalog: &'a Catalog, tier: Option<&'a Tier>, scopes: &'a Scopes) -> impl Iterator<Item = &'a Arc<Model>> {
    catalog.models.values().filter(move |model| may_use_model(tier, scopes, &model.name, model.min_tier.as_ref()).is_ok())
}

fn allows(list: Option<&[Box<str>]>, name: &str) -> bool {
    list.is_none_or(|list| {
        list.iter().any(|entry| match entry.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => **entry == *name,
        })
    })
}
