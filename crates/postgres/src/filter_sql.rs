//! Translates a filter to a statement. For the newest events the plan is fixed by the statement:
//! one index scan for each value of one of the filter's lists, each with the limit.

use negsync_nostr::{Filter, TagKey};
use std::fmt::Write;
use tokio_postgres::types::{ToSql, Type};

/// Letters of tags that many events share; an author's events are probably fewer.
const SHARED_LETTERS: [u8; 2] = [b'p', b't'];

/// The kinds of an author's events, each found by one index lookup.
const KINDS_OF_AUTHOR: &str = "CROSS JOIN LATERAL (
    WITH RECURSIVE kinds AS (
        (SELECT kind FROM event WHERE pubkey = v.value ORDER BY kind LIMIT 1)
        UNION ALL
        SELECT (SELECT kind FROM event WHERE pubkey = v.value AND kind > kinds.kind ORDER BY kind LIMIT 1)
        FROM kinds WHERE kinds.kind IS NOT NULL)
    SELECT kind FROM kinds WHERE kind IS NOT NULL) k";

/// A statement with its parameters and their types.
#[derive(Default)]
pub(crate) struct FilterQuery {
    pub(crate) sql: String,
    parameters: Vec<(Box<dyn ToSql + Sync + Send>, Type)>,
}

/// The index that is scanned. Conditions that it does not cover are checked for each row.
#[derive(Clone, Copy)]
enum Path<'filter> {
    Ids,
    /// The tag list at this index.
    Tag(usize, &'filter [TagKey]),
    Authors(&'filter [[u8; 32]]),
    Kinds(&'filter [u16]),
    Time,
}

impl FilterQuery {
    /// All items that match. Ignores `limit`; an item with several of the tags may come twice.
    pub(crate) fn all(filter: &Filter) -> Self {
        let mut query = Self::default();
        let path = path(filter);
        let (table, key) = match path {
            Path::Tag(_, keys) => ("tag", format!("h.key = ANY({})", query.keys(keys))),
            _ => ("event", "TRUE".to_owned()),
        };
        query.sql = format!("SELECT h.created_at, h.id FROM {table} h WHERE {key}");
        query.add_conditions(filter, path, true);
        query
    }

    /// The newest `most` items that match, newest first; within a second the lowest id first.
    /// Events that expired by `expired` are left out.
    pub(crate) fn newest(filter: &Filter, most: usize, expired: Option<u64>) -> Self {
        let mut query = Self::default();
        let path = path(filter);
        let limit = query.add(i64::try_from(most).unwrap_or(i64::MAX), Type::INT8);
        let order = format!("ORDER BY created_at DESC, id LIMIT {limit}");
        let (from, table, mut decides_kind) = match path {
            Path::Tag(_, keys) => {
                let keys = query.keys(keys);
                (format!("unnest({keys}) AS v (value)"), "tag h WHERE h.key = v.value", false)
            }
            Path::Authors(authors) => {
                let authors = query.ids(authors);
                let kinds = match &filter.kinds {
                    Some(kinds) => {
                        let kinds = query.kinds(kinds);
                        format!("CROSS JOIN unnest({kinds}) AS k (kind)")
                    }
                    None => KINDS_OF_AUTHOR.to_owned(),
                };
                let from = format!("unnest({authors}) AS v (value) {kinds}");
                (from, "event h WHERE h.pubkey = v.value AND h.kind = k.kind", true)
            }
            Path::Kinds(kinds) => {
                let kinds = query.kinds(kinds);
                (format!("unnest({kinds}) AS k (kind)"), "event h WHERE h.kind = k.kind", true)
            }
            Path::Ids | Path::Time => (String::new(), "event h WHERE TRUE", false),
        };
        let is_direct = from.is_empty();
        query.sql = if is_direct {
            format!("SELECT h.created_at, h.id FROM {table}")
        } else {
            format!(
                "SELECT DISTINCT w.created_at, w.id FROM {from} CROSS JOIN LATERAL (
                 SELECT h.created_at, h.id FROM {table}"
            )
        };
        // The filter's kinds are scanned one by one; excluded kinds still need a condition.
        if filter.kinds.is_none() {
            decides_kind = false;
        }
        query.add_conditions(filter, path, !decides_kind);
        if decides_kind && !filter.without_kinds.is_empty() {
            query.leave_out_kinds(filter);
        }
        if let Some(now) = expired {
            let now = query.add(now as i64, Type::INT8);
            let _ = write!(
                query.sql,
                " AND NOT EXISTS (SELECT 1 FROM event x WHERE x.id = h.id AND x.expires_at <= {now})"
            );
        }
        if is_direct {
            let _ = write!(query.sql, " ORDER BY h.created_at DESC, h.id LIMIT {limit}");
        } else {
            let _ = write!(query.sql, " ORDER BY h.created_at DESC, h.id LIMIT {limit}) w {order}");
        }
        query
    }

    /// A statement without parameters.
    pub(crate) fn plain(sql: String) -> Self {
        Self { sql, parameters: Vec::new() }
    }

    /// The parameters in the form of the client library.
    pub(crate) fn parameters(&self) -> Vec<(&(dyn ToSql + Sync), Type)> {
        self.parameters
            .iter()
            .map(|(value, of)| (value.as_ref() as &(dyn ToSql + Sync), of.clone()))
            .collect()
    }

    fn add(&mut self, value: impl ToSql + Sync + Send + 'static, of: Type) -> String {
        self.parameters.push((Box::new(value), of));
        format!("${}", self.parameters.len())
    }

    fn ids(&mut self, ids: &[[u8; 32]]) -> String {
        self.add(ids.iter().map(|id| id.to_vec()).collect::<Vec<_>>(), Type::BYTEA_ARRAY)
    }

    fn keys(&mut self, keys: &[TagKey]) -> String {
        let keys: Vec<Vec<u8>> = keys.iter().map(|key| key.as_bytes().to_vec()).collect();
        self.add(keys, Type::BYTEA_ARRAY)
    }

    fn kinds(&mut self, kinds: &[u16]) -> String {
        let kinds: Vec<i32> = kinds.iter().map(|kind| i32::from(*kind)).collect();
        self.add(kinds, Type::INT4_ARRAY)
    }

    fn leave_out_kinds(&mut self, filter: &Filter) {
        let kinds = self.kinds(&filter.without_kinds);
        let _ = write!(self.sql, " AND h.kind <> ALL({kinds})");
    }

    /// Adds the conditions that the index does not cover.
    fn add_conditions(&mut self, filter: &Filter, path: Path<'_>, asks_kind: bool) {
        let is_tag = matches!(path, Path::Tag(..));
        if let Some(ids) = &filter.ids {
            let ids = self.ids(ids);
            let _ = write!(self.sql, " AND h.id = ANY({ids})");
        }
        if asks_kind {
            if let Some(kinds) = &filter.kinds {
                let kinds = self.kinds(kinds);
                let _ = write!(self.sql, " AND h.kind = ANY({kinds})");
            }
            if !filter.without_kinds.is_empty() {
                self.leave_out_kinds(filter);
            }
        }
        if let Some(authors) = &filter.authors {
            let authors = self.ids(authors);
            let _ = match is_tag {
                true => write!(
                    self.sql,
                    " AND EXISTS (SELECT 1 FROM event e WHERE e.id = h.id AND e.pubkey = ANY({authors}))"
                ),
                false => write!(self.sql, " AND h.pubkey = ANY({authors})"),
            };
        }
        for (sign, bound) in [(">=", filter.since), ("<=", filter.until)] {
            if let Some(second) = bound {
                let second = i64::try_from(second).unwrap_or(i64::MAX);
                let second = self.add(second, Type::INT8);
                let _ = write!(self.sql, " AND h.created_at {sign} {second}");
            }
        }
        for (place, keys) in filter.tags.iter().enumerate() {
            if matches!(path, Path::Tag(walked, _) if walked == place) {
                continue;
            }
            let keys = self.keys(keys);
            let _ = write!(
                self.sql,
                " AND EXISTS (SELECT 1 FROM tag t WHERE t.key = ANY({keys})
                  AND t.created_at = h.created_at AND t.id = h.id)"
            );
        }
    }
}

/// The index that probably has the fewest rows for the filter.
fn path(filter: &Filter) -> Path<'_> {
    if filter.ids.is_some() {
        return Path::Ids;
    }
    let is_shared =
        |keys: &[TagKey]| keys.first().is_some_and(|key| SHARED_LETTERS.contains(&key.letter()));
    let lists = filter.tags.iter().map(Vec::as_slice).enumerate();
    let tag = lists.min_by_key(|(_, keys)| (is_shared(keys), keys.len()));
    match (tag, &filter.authors, &filter.kinds) {
        (Some((place, keys)), None, _) => Path::Tag(place, keys),
        (Some((place, keys)), Some(_), _) if !is_shared(keys) => Path::Tag(place, keys),
        (_, Some(authors), _) => Path::Authors(authors),
        (_, None, Some(kinds)) => Path::Kinds(kinds),
        (_, None, None) => Path::Time,
    }
}
