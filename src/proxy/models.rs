//! `GET /v1/models[/{id}]`: what this caller may use, in OpenAI's shape (which Anthropic's clients read as well).

use super::gateway::Gateway;
use super::ingress::{self, Caller};
use super::{refuse, respond};
use crate::engine::catalog::{Catalog, Model};
use crate::engine::dialect::Dialect;
use crate::engine::policy;
use crate::engine::refusal::Refusal;
use crate::telemetry::clock;
use pingora_core::protocols::http::ServerSession;
use serde_json::{Value, json};
use std::sync::Arc;

/// Answers. Returns whether the connection may be used again.
pub async fn serve(gateway: &Arc<Gateway>, session: &mut ServerSession) -> bool {
    if session.req_header().method != http::Method::GET {
        return refuse(gateway, session, Dialect::OpenAi, &Refusal::WrongMethod { allow: "GET" }).await;
    }
    let catalog = gateway.catalog.load_full();
    let caller = match ingress::authenticate(gateway, session, &catalog, clock::now_ms()).await {
        Ok(caller) => caller,
        Err(refusal) => return refuse(gateway, session, Dialect::OpenAi, &refusal).await,
    };
    let created = gateway.reloads.lock().loaded_ms / 1000;
    let path = session.req_header().uri.path();
    let document = match path.strip_prefix("/v1/models/").map(respond::percent_decode) {
        None => json!({"object": "list", "data": open(&catalog, &caller).iter().map(|model| object(model, created)).collect::<Vec<_>>()}),
        Some(id) => match open(&catalog, &caller).into_iter().find(|model| *model.name == *id) {
            Some(model) => object(&model, created),
            None => {
                let refusal = Refusal::UnknownModel { asked: id.into(), nearest: Vec::new() };
                return refuse(gateway, session, Dialect::OpenAi, &refusal).await;
            }
        },
    };
    respond::json(session, 200, &document, None).await
}

/// The models a caller may use, by name.
pub fn open(catalog: &Catalog, caller: &Caller) -> Vec<Arc<Model>> {
    let mut models: Vec<Arc<Model>> = policy::open_models(catalog, caller.tier.as_deref(), caller.key.scopes()).cloned().collect();
    models.sort_by(|one, other| one.name.cmp(&other.name));
    models
}

fn object(model: &Model, created: u64) -> Value {
    let owner = model.targets.first().map_or("weir", |target| &target.provider.name);
    json!({"id": &*model.name, "object": "model", "type": "model", "display_name": &*model.name, "created": created, "owned_by": owner})
}
