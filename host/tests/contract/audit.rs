//! The audit log and the change that it tells of: both, or neither.

use std::sync::Arc;

use picloud::apps::sql as apps;
use picloud::apps::{AppId, Slug};
use picloud::audit::{Act, Acting, Entry, Filter, sql};
use picloud::store::{Grouped, StoreError, Tx, witnessed};

use crate::database::Database;
use crate::on_both_engines;

on_both_engines!(
    a_change_and_its_entry_are_committed_together,
    a_change_without_its_entry_is_not_made,
    what_is_not_committed_has_no_entry,
    a_grouped_change_has_its_entry_too,
);

fn acting(target: &str) -> Arc<Acting> {
    Arc::new(Acting::new(Act {
        action: "POST /apps".to_owned(),
        target: target.to_owned(),
        address: "127.0.0.1".to_owned(),
        app_id: None,
        actor: None,
        status: 200,
    }))
}

/// An app to be, alone or in a group.
struct NewApp(AppId, Slug);

impl NewApp {
    fn of(slug: &str) -> Self {
        Self(AppId::new(), slug.parse().unwrap())
    }

    async fn write(&self, tx: &mut Tx) -> Result<(), StoreError> {
        apps::insert(tx, self.0, &self.1, "x").await
    }
}

impl Grouped for NewApp {
    type Output = ();

    async fn apply(tx: &mut Tx, items: &[Self]) -> Result<Vec<()>, StoreError> {
        for item in items {
            item.write(tx).await?;
        }
        Ok(vec![(); items.len()])
    }
}

async fn add(test: &Database, app: NewApp, fails: bool) -> Result<(), StoreError> {
    let add = test.db.write(move |tx| {
        Box::pin(async move {
            app.write(tx).await?;
            tx.creates(app.0);
            match fails {
                true => Err(StoreError::Closed),
                false => Ok(()),
            }
        })
    });
    add.await
}

async fn entries(test: &Database) -> Vec<Entry> {
    let mut conn = test.db.read().await.unwrap();
    sql::page(&mut conn, &Filter::default(), None, 100)
        .await
        .unwrap()
}

async fn app_count(test: &Database) -> usize {
    apps::all(&mut test.db.read().await.unwrap())
        .await
        .unwrap()
        .or_fail()
        .unwrap()
        .len()
}

async fn a_change_and_its_entry_are_committed_together(test: Database) {
    let (acting, app) = (acting("/apps"), NewApp::of("shop"));
    let id = app.0;
    let both = async {
        add(&test, app, false).await.unwrap();
        // A second transaction of one request is no second act.
        add(&test, NewApp::of("second"), false).await.unwrap();
    };
    witnessed(acting.clone(), both).await;
    assert!(acting.is_noted());
    let entries = entries(&test).await;
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].target, format!("/apps/{id}"));
    assert_eq!(entries[0].status, 201);
    // Nobody acts here.
    add(&test, NewApp::of("third"), false).await.unwrap();
    assert_eq!(app_count(&test).await, 3);
}

async fn a_change_without_its_entry_is_not_made(test: Database) {
    test.execute("alter table audit rename to elsewhere").await;
    let acting = acting("/apps");
    let added = witnessed(acting.clone(), add(&test, NewApp::of("shop"), false)).await;
    assert!(added.is_err());
    assert!(!acting.is_noted());
    let grouped = test.db.write_grouped(NewApp::of("shop"));
    assert!(witnessed(acting.clone(), grouped).await.is_err());
    assert_eq!(app_count(&test).await, 0);
}

async fn what_is_not_committed_has_no_entry(test: Database) {
    let acting = acting("/apps");
    let added = witnessed(acting.clone(), add(&test, NewApp::of("shop"), true)).await;
    assert!(added.is_err());
    assert!(!acting.is_noted());
    assert_eq!(entries(&test).await.len(), 0);
    assert_eq!(app_count(&test).await, 0);
}

async fn a_grouped_change_has_its_entry_too(test: Database) {
    let writes = (0..20).map(|n| {
        let db = test.db.clone();
        tokio::spawn(async move {
            // Every other one fails, and takes nobody with it.
            let slug = format!("app-{}", n / 2);
            let acting = acting(&slug);
            let write = db.write_grouped(NewApp::of(&slug));
            let written = witnessed(acting.clone(), write).await;
            assert_eq!(written.is_ok(), acting.is_noted());
            written.is_ok()
        })
    });
    let writes: Vec<_> = writes.collect();
    let mut written = 0;
    for write in writes {
        written += usize::from(write.await.unwrap());
    }
    assert_eq!(written, 10);
    let mut targets: Vec<_> = entries(&test)
        .await
        .into_iter()
        .map(|entry| entry.target)
        .collect();
    targets.sort();
    let expected: Vec<_> = (0..10).map(|n| format!("app-{n}")).collect();
    assert_eq!(targets, expected);
    assert_eq!(app_count(&test).await, 10);
}
