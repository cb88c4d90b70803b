//! `POST /rest/v1/`: several requests in one transaction, all or nothing.
//!
//! Every operation is planned and answered as the same request alone would be; this file only takes
//! them apart and puts their answers together. The claims, the schema, the end and the time zone are
//! the whole's, and so are a status and headers that functions set.

use std::borrow::Cow;
use std::fmt::Write;

use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName};
use hyper::http::request::Parts;

use super::problem::{JSON, Problem, logged};
use super::reply::Reply;
use super::rows::{self, Rows, ended, json_body, looked_up, preferences, strictly, terms};
use super::{call, once, profile};
use crate::auth::Identity;
use crate::http::Response;
use crate::http::headers::joined;
use crate::http::route::Route;
use crate::postgres::transaction::Context;
use crate::rows::Error;
use crate::rows::batch::{self, Asked, Method};
use crate::rows::call::Ask;
use crate::rows::execute::{self, Done, Ended, Operation, Step};
use crate::rows::once::Once;
use crate::rows::request::{Preferences, Request, Shape, Verb};
use crate::schema::catalog::Catalog;

/// Answers a list of operations.
pub async fn respond(service: &Rows, parts: &Parts, identity: &Identity, body: &[u8]) -> Response {
    match answer(service, parts, identity, body).await {
        Ok(reply) => reply.into_response(),
        Err(problem) => problem.seen_by(identity).into_response(),
    }
}

async fn answer(
    service: &Rows,
    parts: &Parts,
    identity: &Identity,
    body: &[u8],
) -> Result<Reply, Problem> {
    json_body(&parts.headers)?;
    let schema = profile::wanted(parts, service.catalog.schemas())?;
    let header = joined(&parts.headers, "prefer").unwrap_or_default();
    let preferences = preferences(&header)?;
    let asked = batch::parse(body).map_err(|error| logged(&error))?;
    let once = once::of(identity, parts, body)?;
    if asked.is_empty() {
        return Ok(Reply::json("[]".to_owned(), JSON));
    }
    let context = service.context(identity, schema.as_deref(), parts, &preferences);
    let mut whole = Whole {
        service,
        schema,
        preferences,
        context,
        once,
    };
    whole.answer(&asked).await
}

/// What all operations share.
struct Whole<'a> {
    service: &'a Rows,
    schema: Option<String>,
    preferences: Preferences,
    context: Context,
    once: Option<Once>,
}

/// One operation, planned.
enum Job {
    Rows(Box<rows::Job>),
    Call(Box<call::Job>),
}

impl Job {
    fn operation(&self) -> &Operation {
        match self {
            Self::Rows(job) => &job.operation,
            Self::Call(job) => &job.operation,
        }
    }

    fn reply(&self, done: Done) -> Result<Reply, Error> {
        match self {
            Self::Rows(job) => job.reply(done, None),
            Self::Call(job) => job.reply(done, None),
        }
    }
}

impl Whole<'_> {
    /// Runs the operations, and once more when one failed for a reason that is gone. Nothing is
    /// committed when they are run again.
    async fn answer(&mut self, asked: &[Asked<'_>]) -> Result<Reply, Problem> {
        let mut healed = false;
        loop {
            let jobs = looked_up(self.service, |catalog| self.jobs(asked, catalog)).await?;
            let error = match self.run(&jobs, asked).await {
                Ok(reply) => return Ok(reply),
                Err(error) => error,
            };
            if error.is_about_time_zone() && self.forget_time_zone() {
                continue;
            }
            let drifted = !healed && error.drift().is_some();
            if !drifted || self.service.catalog.look_again().await.is_err() {
                return Err(logged(&strictly(&self.preferences, error)));
            }
            healed = true;
        }
    }

    fn jobs(&self, asked: &[Asked<'_>], catalog: &Catalog) -> Result<Vec<Job>, Error> {
        let jobs = asked.iter().enumerate();
        jobs.map(|(index, asked)| self.job(asked, catalog).map_err(|e| at(index, e)))
            .collect()
    }

    fn job(&self, asked: &Asked<'_>, catalog: &Catalog) -> Result<Job, Error> {
        let wrong = |reason: &str| Error::Operations(reason.to_owned());
        let header = |name: &str| self.header(asked, name);
        let body = asked.body.unwrap_or_default().as_bytes();
        let most = self.service.max_rows;
        match Route::of(&format!("/rest/v1/{}", asked.path)) {
            Route::Rows { table } => {
                let verb = verb(asked.method);
                let mut request = Request::parse(verb, &table, &asked.query, header)?;
                request.schema.clone_from(&self.schema);
                if !matches!(request.shape, Some(Shape::Array | Shape::Object)) {
                    return Err(wrong("it accepts neither application/json nor one object"));
                }
                let job = rows::Job::of(&request, catalog, body, most)?;
                Ok(Job::Rows(Box::new(job)))
            }
            Route::Call { function } if asked.method == Method::Post => {
                let ask = Ask {
                    schema: self.schema.as_deref(),
                    function: &function,
                    query: &asked.query,
                    body: Some(body),
                    header: &header,
                };
                let job = call::Job::of(ask, catalog, most)?;
                if !job.is_acceptable() {
                    return Err(wrong("it accepts neither application/json nor one object"));
                }
                Ok(Job::Call(Box::new(job)))
            }
            Route::Call { .. } => Err(wrong("a function is called by POST here")),
            _ => Err(wrong("its path is neither a table nor rpc/ and a function")),
        }
    }

    /// A header of an operation. `handling` of the whole counts where the operation has none: the
    /// first mention of a preference counts.
    fn header(&self, asked: &Asked<'_>, name: &str) -> Option<String> {
        let own = asked.headers.get(name).map(String::as_str);
        if name != "prefer" {
            return own.map(str::to_owned);
        }
        let handling = match self.preferences.strict {
            Some(true) => "handling=strict",
            Some(false) => "handling=lenient",
            None => return own.map(str::to_owned),
        };
        let own = own.map_or(Cow::Borrowed(""), |own| Cow::Owned(format!("{own}, ")));
        Some(format!("{own}{handling}"))
    }

    async fn run(&self, jobs: &[Job], asked: &[Asked<'_>]) -> Result<Reply, Error> {
        let steps: Vec<Step> = jobs
            .iter()
            .zip(asked)
            .map(|(job, asked)| Step {
                operation: job.operation().clone(),
                expect: asked.expect,
            })
            .collect();
        let share = self.service.answers.share();
        let answered = execute::write_all(
            &self.service.pool,
            terms(self.service, &self.context, &self.preferences),
            &steps,
            self.once.as_ref(),
            &share,
            |done, end| self.reply(jobs, done, &end),
        );
        Ok(Reply::of(answered.await?, share))
    }

    fn reply(&self, jobs: &[Job], done: Vec<Done>, end: &Ended) -> Result<Reply, Error> {
        let mut text = String::from("[");
        for (index, (job, done)) in jobs.iter().zip(done).enumerate() {
            let reply = job.reply(done).map_err(|error| at(index, error))?;
            text.push_str(if index > 0 { ",\n" } else { "" });
            tell(&mut text, &reply);
        }
        text.push(']');
        let mut reply = Reply::json(text, JSON);
        let zone = self.preferences.timezone.as_deref().unwrap_or_default();
        let zone = format!("timezone={zone}");
        let told_end = self.service.end(&self.preferences).1;
        rows::applied(
            &mut reply.headers,
            [
                (told_end.unwrap_or_default(), told_end.is_some()),
                ("handling=strict", self.preferences.strict == Some(true)),
                ("handling=lenient", self.preferences.strict == Some(false)),
                (zone.as_str(), self.preferences.timezone.is_some()),
            ],
        );
        Ok(ended(reply, end))
    }

    /// Leaves a preference for an unknown time zone out, once.
    fn forget_time_zone(&mut self) -> bool {
        let strict = self.preferences.strict == Some(true);
        if strict || self.preferences.timezone.take().is_none() {
            return false;
        }
        let settings = &mut self.context.settings;
        settings.retain(|(name, _)| name != "TimeZone");
        true
    }
}

fn at(index: usize, source: Error) -> Error {
    Error::Operation {
        index,
        source: Box::new(source),
    }
}

fn verb(method: Method) -> Verb {
    match method {
        Method::Get => Verb::Read,
        Method::Post => Verb::Insert,
        Method::Put => Verb::Replace,
        Method::Patch => Verb::Update,
        Method::Delete => Verb::Delete,
    }
}

/// `{"status":200,"headers":{...},"body":...}`. The body is JSON already, and stays as it is.
fn tell(text: &mut String, reply: &Reply) {
    let told = |name: &HeaderName| *name != CONTENT_TYPE && *name != CONTENT_LENGTH;
    let headers: serde_json::Map<String, serde_json::Value> = reply
        .headers
        .iter()
        .filter(|(name, _)| told(name))
        .filter_map(|(name, value)| Some((name.as_str().to_owned(), value.to_str().ok()?.into())))
        .collect();
    let headers = serde_json::Value::from(headers);
    let _infallible = write!(
        text,
        r#"{{"status":{},"headers":{headers},"body":"#,
        reply.status.as_u16()
    );
    text.push_str(reply.body.as_deref().unwrap_or("null"));
    text.push('}');
}
