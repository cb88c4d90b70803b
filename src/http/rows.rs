//! `/rest/v1/{table}`: reads and writes.

use hyper::HeaderMap;
use hyper::Method;
use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::http::request::Parts;

use super::problem::Problem;
use super::{Response, body};
use crate::postgres::pool::Pool;
use crate::rows::execute::{Limits, Outcome, execute};
use crate::rows::plan::{Action, Plan, plan};
use crate::rows::request::{Request, Verb, parse};
use crate::rows::{Error, statement};
use crate::schema::catalog::{Catalog, Handle};

/// What answering takes.
#[derive(Debug)]
pub struct Rows {
    /// Connections for requests.
    pub pool: Pool,
    /// What tables there are.
    pub catalog: std::sync::Arc<Handle>,
    /// How much one request may take.
    pub limits: Limits,
}

impl Rows {
    /// Answers a request that is not for events.
    pub async fn respond(&self, parts: &Parts, table: &str, body: &[u8]) -> Response {
        match self.answer(parts, table, body).await {
            Ok(response) => response,
            Err(error) => Problem::from(&error).respond(),
        }
    }

    async fn answer(&self, parts: &Parts, table: &str, body: &[u8]) -> Result<Response, Error> {
        let request = self.request(parts, table)?;
        if request.verb != Verb::Read && !body.is_empty() {
            json_only(&parts.headers)?;
        }
        let text =
            std::str::from_utf8(body).map_err(|_| Error::Body("the body is not UTF-8".into()))?;
        let plan = self.plan(&request, body).await?;
        let representation = request.prefer.representation == Some(true);
        let run = || {
            execute(
                &self.pool,
                &plan,
                text,
                representation,
                request.single,
                &self.limits,
            )
        };
        let outcome = match run().await {
            // The table was altered between planning and running: nothing was done, so once more.
            Err(Error::Database(error))
                if error.code().is_some_and(|code| code.code() == "0A000") =>
            {
                run().await
            }
            outcome => outcome,
        }?;
        respond(&request, &plan, outcome)
    }

    /// Reads what a request says.
    ///
    /// # Errors
    /// [`Error`] about the request.
    pub fn request(&self, parts: &Parts, table: &str) -> Result<Request, Error> {
        let headers = combined(&parts.headers);
        let header = |name: &str| {
            headers
                .iter()
                .find(|(known, _)| known == name)
                .map(|(_, value)| value.as_str())
        };
        let verb = match parts.method {
            Method::POST => Verb::Insert,
            Method::PATCH => Verb::Update,
            Method::DELETE => Verb::Delete,
            _ => Verb::Read,
        };
        let profile = if verb == Verb::Read {
            "accept-profile"
        } else {
            "content-profile"
        };
        let served = self.catalog.schema();
        if let Some(schema) = header(profile).filter(|schema| *schema != served) {
            return Err(Error::Schema(schema.to_owned(), served.to_owned()));
        }
        parse(verb, table, parts.uri.query().unwrap_or_default(), header)
    }

    /// Plans, reading the catalogue anew if it seems to miss something: a table or a column that
    /// was made a moment ago is there.
    ///
    /// # Errors
    /// [`Error`] about a name or the body.
    pub async fn plan(&self, request: &Request, body: &[u8]) -> Result<Plan, Error> {
        let catalog: std::sync::Arc<Catalog> = self.catalog.current();
        match plan(request, &catalog, body) {
            Err(Error::NoTable { .. } | Error::NoColumn { .. } | Error::NoPayloadColumn { .. }) => {
                // With the database away the old picture keeps serving.
                let catalog = self.catalog.reload().await.unwrap_or(catalog);
                plan(request, &catalog, body)
            }
            planned => planned,
        }
    }
}

/// Header values by lower-case name, several of one name joined by commas.
fn combined(headers: &HeaderMap) -> Vec<(String, String)> {
    headers
        .keys()
        .map(|name| {
            let values = headers
                .get_all(name)
                .iter()
                .filter_map(|value| value.to_str().ok());
            (
                name.as_str().to_owned(),
                values.collect::<Vec<_>>().join(", "),
            )
        })
        .collect()
}

/// A form of a foreign page can send other types without asking first; JSON it cannot.
///
/// # Errors
/// [`Error::ContentType`].
pub fn json_only(headers: &HeaderMap) -> Result<(), Error> {
    let kind = headers
        .get(CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok())
        .unwrap_or("none");
    let bare = kind
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    match bare.as_str() {
        "application/json" => Ok(()),
        kind if kind.starts_with("application/vnd.pgrst.") => Ok(()),
        _ => Err(Error::ContentType(kind.to_owned())),
    }
}

fn respond(request: &Request, plan: &Plan, outcome: Outcome) -> Result<Response, Error> {
    let returned = request.verb == Verb::Read || request.prefer.representation == Some(true);
    let (status, range) = status(request, plan, &outcome)?;
    let mut response = Response::new(if !returned {
        body::empty()
    } else if request.single {
        body::full(outcome.rows.into_iter().next().unwrap_or_default())
    } else {
        body::full(format!("[{}]", outcome.rows.join(",\n ")))
    });
    *response.status_mut() = status;
    let headers = response.headers_mut();
    if returned {
        let kind = if request.single {
            "application/vnd.pgrst.object+json; charset=utf-8"
        } else {
            "application/json; charset=utf-8"
        };
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    }
    let mut insert = |name: &'static str, value: String| {
        if let (false, Ok(value)) = (value.is_empty(), HeaderValue::from_str(&value)) {
            headers.insert(name, value);
        }
    };
    insert("content-range", range);
    insert("preference-applied", request.prefer.applied(request.verb));
    insert("rowcast-txid", outcome.txid.unwrap_or_default());
    Ok(response)
}

/// Status and `Content-Range`.
fn status(
    request: &Request,
    plan: &Plan,
    outcome: &Outcome,
) -> Result<(StatusCode, String), Error> {
    let affected = outcome.affected;
    let counted = if request.prefer.count {
        affected.to_string()
    } else {
        "*".to_owned()
    };
    let returned = request.prefer.representation == Some(true);
    let quiet = if returned {
        StatusCode::OK
    } else {
        StatusCode::NO_CONTENT
    };
    Ok(match &plan.action {
        Action::Read { offset, .. } => {
            let total = outcome
                .total
                .map_or("*".to_owned(), |total| total.to_string());
            if let Some(all) = outcome.total.filter(|all| *offset > 0 && offset >= all) {
                return Err(Error::Range(format!(
                    "An offset of {offset} was requested, but there are only {all} rows."
                )));
            }
            let partial = outcome.total.is_some_and(|all| affected < all);
            let status = if partial {
                StatusCode::PARTIAL_CONTENT
            } else {
                StatusCode::OK
            };
            (status, format!("{}/{total}", range(*offset, affected)))
        }
        Action::Insert { conflict, .. } => {
            let met =
                conflict.is_some() && statement::tells_inserted(plan) && outcome.inserted == 0;
            let made = affected > 0 && !met;
            (
                if made {
                    StatusCode::CREATED
                } else {
                    StatusCode::OK
                },
                format!("*/{counted}"),
            )
        }
        Action::Update { .. } => (quiet, format!("{}/{counted}", range(0, affected))),
        Action::Delete => (quiet, format!("*/{counted}")),
    })
}

fn range(offset: u64, rows: u64) -> String {
    match rows {
        0 => "*".to_owned(),
        rows => format!("{offset}-{}", offset + rows - 1),
    }
}
