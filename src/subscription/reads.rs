//! What a subscription reads: the log since a cursor, and the state of a view.
//!
//! [`Pools`] reads them from the database. Whoever runs subscriptions without one reads them from
//! somewhere else; what a stream makes of them is the same.

use std::fmt::Debug;
use std::sync::Arc;

use futures::future::{BoxFuture, FutureExt};

use crate::cursor::Cursor;
use crate::event::Element;
use crate::log::{self, Batch, Bounds, LogError, Place, in_time};
use crate::postgres::pool::{Lease, Pool};
use crate::postgres::transaction::{self, Terms};
use crate::schema::catalog::Catalog;
use crate::schema::handle::Handle;
use crate::view::View;
use crate::view::asking::{Asking, Pending};
use crate::view::snapshot::{self, SnapshotError, State};

/// From where in the log, and how much of it.
#[derive(Debug, Clone, Copy)]
pub struct Since<'a> {
    /// Where the log is.
    pub place: &'a Place,
    /// What committed after this.
    pub from: &'a Cursor,
    /// At most.
    pub bounds: Bounds,
}

/// What there is to ask for as of a batch; `None` when asking would not tell it.
pub type Ask<'a> = &'a (dyn Fn(&Batch) -> Option<Pending> + Send + Sync);

/// Reads what a subscription needs.
pub trait Reads: Debug + Send + Sync {
    /// What the tables look like, as far as is known.
    fn catalog(&self) -> Arc<Catalog>;

    /// Looks at the tables again; whether that could be done.
    fn reload(&self) -> BoxFuture<'_, bool>;

    /// The log; `None` when it cannot be read now, or is more than wanted.
    fn log<'a>(&'a self, since: Since<'a>) -> BoxFuture<'a, Option<Batch>>;

    /// The state of a view.
    fn state(
        &self,
        view: Arc<View>,
        place: &Place,
    ) -> BoxFuture<'static, Result<State, SnapshotError>>;

    /// The log, and in the same snapshot what has become of the rows that `ask` finds in it: where
    /// the log was read, and what is to be told. `None` as in [`Reads::log`].
    fn answers<'a>(
        &'a self,
        view: &'a View,
        asking: &'a Asking,
        since: Since<'a>,
        ask: Ask<'a>,
    ) -> BoxFuture<'a, Option<(Cursor, Vec<Element>)>>;
}

/// Reads from the database.
#[derive(Debug)]
pub struct Pools {
    /// Connections of the login that reads the log.
    pub log: Pool,
    /// Connections of the login that may become the watchers' roles, for reading states.
    pub states: Pool,
    /// What the tables look like.
    pub catalog: Arc<Handle>,
    /// How snapshots are read.
    pub snapshots: snapshot::Limits,
}

impl Pools {
    /// Reads the log, in a transaction that stays open.
    async fn open(&self, lease: &Lease, since: Since<'_>) -> Result<Batch, LogError> {
        let Since {
            place,
            from,
            bounds,
        } = since;
        let batch = log::open(lease, place, from, &self.catalog.current(), bounds).await?;
        if batch.definitions.is_empty() {
            return Ok(batch);
        }
        // A table or partition that the feed has not met yet must not be left out.
        let Ok(catalog) = self.catalog.reload().await else {
            return Err(LogError::Unexpected("tables that cannot be looked at"));
        };
        in_time(lease.batch_execute("rollback")).await??;
        log::open(lease, place, from, &catalog, bounds).await
    }
}

impl Reads for Pools {
    fn catalog(&self) -> Arc<Catalog> {
        self.catalog.current()
    }

    fn reload(&self) -> BoxFuture<'_, bool> {
        async move { self.catalog.reload().await.is_ok() }.boxed()
    }

    fn log<'a>(&'a self, since: Since<'a>) -> BoxFuture<'a, Option<Batch>> {
        async move {
            let lease = Lease::take(&self.log).await.ok()?;
            let batch = self.open(&lease, since).await.ok()?;
            end(lease).await;
            Some(batch)
        }
        .boxed()
    }

    fn state(
        &self,
        view: Arc<View>,
        place: &Place,
    ) -> BoxFuture<'static, Result<State, SnapshotError>> {
        let (states, place) = (self.states.clone(), place.clone());
        let limits = self.snapshots.clone();
        async move { snapshot::query(&view, &states, &place, &limits).await }.boxed()
    }

    fn answers<'a>(
        &'a self,
        view: &'a View,
        asking: &'a Asking,
        since: Since<'a>,
        ask: Ask<'a>,
    ) -> BoxFuture<'a, Option<(Cursor, Vec<Element>)>> {
        async move {
            let lease = Lease::take(&self.log).await.ok()?;
            let batch = self.open(&lease, since).await.ok()?;
            let pending = ask(&batch);
            let mut elements = Vec::new();
            if let Some(pending) = pending.as_ref().filter(|pending| !pending.is_empty()) {
                let snapshot = log::export(&lease).await.ok()?;
                let asked = Lease::take_for(view.context().caller(), &self.states)
                    .await
                    .ok()?;
                let tables = view.tables();
                let terms = Terms {
                    snapshot: Some(&snapshot),
                    tables: &tables,
                    ..Terms::read(view.context(), self.snapshots.timeout)
                };
                let answer = transaction::run(asked, terms, async |client| {
                    let answer = view.ask(asking, pending, None, client).await;
                    answer.map_err(SnapshotError::from)
                });
                elements = log::hold(&lease, answer).await.ok()?.ok()?.elements;
            }
            end(lease).await;
            pending.map(|_| (batch.end, elements))
        }
        .boxed()
    }
}

/// Ends the transaction in which the log was read. A connection that does not say so in time is not used again.
async fn end(lease: Lease) {
    if let Ok(Ok(())) = in_time(lease.batch_execute("commit")).await {
        lease.give_back();
    }
}
