//! A read: one transaction on one connection, with one snapshot.

use crate::columns::{bytes, second, slices};
use crate::connection::{Engine, PooledSession, ServerSession};
use crate::fault::fault;
use crate::filter_sql::FilterQuery;
use futures_util::TryStreamExt;
use futures_util::future::try_join;
use negsync_nostr::Filter;
use negsync_reconcile::Item;
use negsync_store::{
    Deadline, Hit, LeftOut, Rest, SourceSnapshot, StoreError, View, VisitEvent, cut, order,
};
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::pin::pin;
use std::time::Duration;
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};

/// Rows that are fetched from the server at a time.
const ROWS_AT_ONCE: usize = 4_096;
/// Events that are read at a time: each may have the maximum length. The first portion is small,
/// for callers that need few.
const FIRST_EVENTS: usize = 32;
const EVENTS_AT_ONCE: usize = 256;

/// Rows of a filter that are fetched first; each portion doubles up to the maximum. If the caller
/// breaks off, about as many rows as it used were fetched in vain.
const FIRST_FETCHED: usize = 8_192;
const MOST_FETCHED: usize = 65_536;

/// Timeout for the next rows of a query. The server ends the query earlier.
const QUERY_TIMEOUT: Duration = Duration::from_secs(610);

pub(crate) const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

/// A parameter, and its type.
pub(crate) type TypedParameter<'value> = (&'value (dyn ToSql + Sync), Type);

/// A read that has begun.
pub(crate) struct StoreReading<'store> {
    pub(crate) engine: &'store Engine,
    pub(crate) deadline: &'store Deadline,
    pub(crate) checkout: PooledSession<'store>,
}

impl StoreReading<'_> {
    pub(crate) fn connection(&self) -> Result<&ServerSession, StoreError> {
        self.checkout.connection()
    }

    /// Ends the transaction and returns the connection to the pool.
    pub(crate) fn end(self) -> Result<(), StoreError> {
        let connection = self.checkout.connection()?;
        let end = async { connection.client().batch_execute("COMMIT").await.map_err(fault) };
        self.engine.wait(connection.within(self.checkout.patience(), end))?;
        self.checkout.give_back();
        Ok(())
    }

    /// Waits for the server, until the deadline.
    pub(crate) fn wait<T>(
        &self,
        future: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, StoreError> {
        let future = async { future.await.map_err(fault) };
        self.wait_for(QUERY_TIMEOUT, future)
    }

    /// Like [`StoreReading::wait`], for requests that the server answers at once.
    pub(crate) fn wait_shortly<T>(
        &self,
        future: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        self.wait_for(self.checkout.patience(), future)
    }

    /// Like [`StoreReading::wait`], for a future with timeouts of its own.
    pub(crate) fn wait_for_parts<T>(
        &self,
        future: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        self.wait_for(Duration::MAX, future)
    }

    fn wait_for<T>(
        &self,
        timeout: Duration,
        future: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        self.engine.wait_until(self.deadline, timeout, self.checkout.connection()?, future)
    }

    /// The items of a filter, fetched from a cursor in portions, until `visit` breaks off.
    fn items_of(
        &self,
        filter: &Filter,
        visit: &mut dyn FnMut(Item) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let query = FilterQuery::all(filter);
        let client = self.connection()?.client();
        let declare = format!("DECLARE items NO SCROLL CURSOR FOR {}", query.sql);
        let parameters = query.parameters();
        // Closes the cursor of the previous filter.
        let close = client.batch_execute("CLOSE ALL");
        self.wait(try_join(close, client.query_typed(&declare, &parameters)))?;
        let mut most = FIRST_FETCHED;
        loop {
            let fetch = FilterQuery::plain(format!("FETCH {most} FROM items"));
            let (mut fetched, mut flow) = (0, ControlFlow::Continue(()));
            self.rows(&fetch, &mut |item| {
                fetched += 1;
                if flow.is_continue() {
                    flow = visit(item);
                }
            })?;
            if flow.is_break() || fetched < most {
                return Ok(());
            }
            most = (most * 2).min(MOST_FETCHED);
        }
    }

    /// All items of a query; `visit` runs outside the connection's threads.
    fn rows(&self, query: &FilterQuery, visit: &mut dyn FnMut(Item)) -> Result<(), StoreError> {
        self.each_row(&query.sql, query.parameters(), read_item, visit)
    }

    /// Like [`StoreReading::rows`], for any statement, with `read` as the decoder of rows.
    pub(crate) fn each_row<T>(
        &self,
        sql: &str,
        parameters: Vec<TypedParameter<'_>>,
        read: impl Fn(&Row) -> Result<T, tokio_postgres::Error>,
        visit: &mut dyn FnMut(T),
    ) -> Result<(), StoreError> {
        let client = self.connection()?.client();
        let rows = self.wait(client.query_typed_raw(sql, parameters))?;
        let mut rows = pin!(rows);
        loop {
            let some = self.wait(async {
                let mut some = Vec::new();
                while some.len() < ROWS_AT_ONCE {
                    let Some(row) = rows.try_next().await? else { break };
                    some.push(read(&row)?);
                }
                Ok(some)
            })?;
            let is_last = some.len() < ROWS_AT_ONCE;
            some.into_iter().for_each(&mut *visit);
            if is_last {
                return Ok(());
            }
            self.deadline.check()?;
        }
    }

    /// `now`, if events that expired by then are still stored.
    fn expired(&self, now: u64) -> Result<Option<u64>, StoreError> {
        // Ordered, so that the server uses the index regardless of its estimates.
        const DUE: &str = "SELECT 1 FROM event WHERE expires_at IS NOT NULL AND expires_at <= $1
            ORDER BY expires_at LIMIT 1";
        let connection = self.connection()?;
        let rows = self.wait(connection.query(DUE, &[&(now as i64)]))?;
        Ok((!rows.is_empty()).then_some(now))
    }

    /// The newest events of the filter, in order, and whether its limit left any out.
    fn newest_of(
        &self,
        filter: &Filter,
        most: usize,
        expired: Option<u64>,
    ) -> Result<(Vec<Hit>, Rest), StoreError> {
        let most = filter.limit.map_or(most, |limit| limit.min(most));
        if filter.is_void() {
            return Ok((Vec::new(), Rest::Nothing));
        }
        if most == 0 {
            return Ok((Vec::new(), Rest::Unknown));
        }
        let query = FilterQuery::newest(filter, most.saturating_add(1), expired);
        let mut hits = Vec::new();
        self.rows(&query, &mut |item| hits.push(Hit::new(item, 0)))?;
        let mut rest = Rest::Nothing;
        cut(&mut hits, most, &mut rest);
        Ok((hits, rest))
    }

    /// The newest events of what a viewer may see, in order.
    pub(crate) fn newest(
        &self,
        views: &[View],
        most: usize,
        now: u64,
    ) -> Result<(Vec<Hit>, LeftOut), StoreError> {
        let expired = self.expired(now)?;
        let (mut hits, mut rests) = (Vec::new(), Vec::new());
        for view in views {
            let mut visible = Vec::new();
            for part in view.parts() {
                let (mut found, rest) = self.newest_of(part, most, expired)?;
                visible.append(&mut found);
                rests.push(rest);
            }
            if !view.own.is_empty() {
                let mut rest = Rest::Nothing;
                let most = view.limit().map_or(most, |limit| limit.min(most));
                cut(&mut visible, most, &mut rest);
                rests.push(rest);
            }
            hits.append(&mut visible);
        }
        order(&mut hits);
        let left_out = LeftOut::of(&hits, &rests);
        Ok((hits, left_out))
    }

    /// See [`negsync_store::EventStore::fetch`]; events that expired by `now` are left out.
    pub(crate) fn fetch(
        &self,
        hits: &[Hit],
        now: u64,
        visit: &mut VisitEvent<'_>,
    ) -> Result<usize, StoreError> {
        const EVENTS: &str = "SELECT id, json FROM event
            WHERE id = ANY($1) AND (expires_at IS NULL OR expires_at > $2)";
        let connection = self.connection()?;
        let (mut looked_at, mut next) = (0, FIRST_EVENTS);
        while let Some(some) = hits.get(looked_at..hits.len().min(looked_at + next))
            && !some.is_empty()
        {
            let ids: Vec<[u8; 32]> = some.iter().map(|hit| hit.item.id).collect();
            let ids = slices(&ids);
            let rows = self.wait(connection.query(EVENTS, &[&ids, &(now as i64)]))?;
            let json = by_id(&rows)?;
            for hit in some {
                looked_at += 1;
                if let Some(json) = json.get(&hit.item.id)
                    && visit(&hit.item, json).is_break()
                {
                    return Ok(looked_at);
                }
            }
            next = (next * 2).min(EVENTS_AT_ONCE);
        }
        Ok(hits.len())
    }

    /// The ids of the stored events that match and have not expired.
    pub(crate) fn ids(&self, filter: &Filter, now: u64) -> Result<Vec<[u8; 32]>, StoreError> {
        let views = [View::whole(filter.clone())];
        let (hits, _) = self.newest(&views, usize::MAX, now)?;
        Ok(hits.into_iter().map(|hit| hit.item.id).collect())
    }
}

fn by_id(rows: &[Row]) -> Result<HashMap<[u8; 32], &str>, StoreError> {
    let pair = |row| Ok((bytes(row, 0)?, Row::try_get(row, 1)?));
    rows.iter().map(pair).collect::<Result<_, _>>().map_err(fault)
}

/// The item in the first two columns.
pub(crate) fn read_item(row: &Row) -> Result<Item, tokio_postgres::Error> {
    Ok(Item::new(second(row, 0)?, bytes(row, 1)?))
}

impl SourceSnapshot for StoreReading<'_> {
    fn items(
        &self,
        filter: &Filter,
        visit: &mut dyn FnMut(Item) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        if filter.is_void() {
            return Ok(());
        }
        self.items_of(filter, visit)
    }
}
