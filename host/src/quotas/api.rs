//! The HTTP API of quotas.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::objects::{self, Object};
use super::{Data, Meter};
use crate::apps::AppId;
use crate::http::endpoints::{Api, Of, Rule};
use crate::http::extract::{Path, app_named};
use crate::http::problem::Problem;
use crate::identity::capability::Capability;
use crate::node::Node;

/// The endpoints of this room.
pub fn endpoints() -> Api {
    Api::default()
        .get(
            "/apps/{app}/usage",
            Rule::App(Capability::SeeApp, Of::App),
            show,
        )
        .called("getUsage", "See how much an app keeps, and may keep")
}

/// What an app keeps of one kind of data.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "StoredUsage")]
pub struct Kept {
    /// What kind.
    pub data: Data,
    /// How many entries, letters, executions, messages, deliveries, versions or keys.
    pub rows: u64,
    /// The most rows of it that an app keeps, where that is bounded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows_max: Option<u64>,
    /// The setting with which whoever runs the instance changes that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows_setting: Option<String>,
    /// Bytes of what they hold.
    pub bytes: u64,
    /// The most bytes of it that an app keeps.
    pub bytes_max: u64,
    /// The setting with which whoever runs the instance changes that.
    pub setting: String,
}

/// How many objects of one kind an app has.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ObjectUsage")]
pub struct Counted {
    /// Of which kind.
    pub kind: Object,
    /// How many.
    pub count: u64,
    /// How many it may have.
    pub max: u64,
    /// The setting with which whoever runs the instance changes that.
    pub setting: String,
}

/// What an app keeps in the database.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "AppUsage")]
pub struct AppUsage {
    /// When it was measured, about once a minute; null before the first time.
    pub measured_at: Option<DateTime<Utc>>,
    /// Each kind of data.
    pub stored: Vec<Kept>,
    /// Each kind of object of which it may have only so many.
    pub objects: Vec<Counted>,
}

fn view(meter: &Meter, app: AppId) -> AppUsage {
    let usage = meter.usage(app);
    let kept = Data::ALL.map(|data| Kept {
        data,
        rows: usage.of(data).rows,
        rows_max: data.rows_setting().map(|_| meter.quotas().most(data).rows),
        rows_setting: data.rows_setting().map(str::to_owned),
        bytes: usage.of(data).bytes,
        bytes_max: meter.quotas().of(data),
        setting: data.setting().to_owned(),
    });
    let counted = Object::ALL.map(|object| Counted {
        kind: object,
        count: usage.objects(object),
        max: meter.quotas().objects,
        setting: objects::SETTING.to_owned(),
    });
    AppUsage {
        measured_at: usage.measured_at,
        stored: kept.into(),
        objects: counted.into(),
    }
}

async fn show(
    State(node): State<Arc<Node>>,
    Path(app): Path<String>,
) -> Result<Json<AppUsage>, Problem> {
    let app = app_named(&node.directory.picture(), &app)?.id;
    Ok(Json(view(&node.quotas, app)))
}
