//! Which schema a request means: `Accept-Profile` for reads, `Content-Profile` for everything else.
//!
//! Promises that a schema which is not served is refused, and that a client can see which one it
//! was given where there are several. It does not know what is in them.

use hyper::Method;
use hyper::header::{HeaderName, HeaderValue};
use hyper::http::request::Parts;

use super::problem::Problem;
use crate::http::Response;

const ACCEPT_PROFILE: HeaderName = HeaderName::from_static("accept-profile");
const CONTENT_PROFILE: HeaderName = HeaderName::from_static("content-profile");

/// The schema that the request's profile header names, if it has one. `served` are the schemas that
/// there are.
///
/// # Errors
/// A [`Problem`] that lists the schemas.
pub fn wanted(parts: &Parts, served: &[String]) -> Result<Option<String>, Problem> {
    let header = match parts.method {
        Method::GET | Method::HEAD => ACCEPT_PROFILE,
        _ => CONTENT_PROFILE,
    };
    let Some(value) = parts.headers.get(header) else {
        return Ok(None);
    };
    // Header bytes are not always ASCII, and names of schemas need not be.
    let named = std::str::from_utf8(value.as_bytes()).ok();
    match served.iter().find(|schema| Some(schema.as_str()) == named) {
        Some(schema) => Ok(Some(schema.clone())),
        None => Err(Problem::schema(served)),
    }
}

/// Tells in a response that succeeded which of several schemas it is about.
pub fn tell(response: &mut Response, parts: &Parts, served: &[String]) {
    if served.len() < 2 || !response.status().is_success() {
        return;
    }
    let Ok(wanted) = wanted(parts, served) else {
        return;
    };
    let schema = wanted.as_ref().or(served.first());
    if let Some(Ok(value)) = schema.map(|schema| HeaderValue::from_bytes(schema.as_bytes())) {
        response.headers_mut().insert(CONTENT_PROFILE, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::body;

    fn parts(method: Method, header: &'static str, schema: &'static str) -> Parts {
        let request = hyper::Request::builder()
            .method(method)
            .header(header, schema.as_bytes())
            .body(());
        request.unwrap().into_parts().0
    }

    fn served() -> Vec<String> {
        vec!["public".to_owned(), "größe".to_owned()]
    }

    #[test]
    fn reads_and_writes_have_a_header_each() {
        let name = |method, header| {
            wanted(&parts(method, header, "größe"), &served()).map_err(|problem| problem.code)
        };
        let other = Ok(Some("größe".to_owned()));
        assert_eq!(name(Method::GET, "accept-profile"), other);
        assert_eq!(name(Method::HEAD, "accept-profile"), other);
        assert_eq!(name(Method::POST, "content-profile"), other);
        assert_eq!(name(Method::DELETE, "content-profile"), other);
        assert_eq!(name(Method::GET, "content-profile"), Ok(None));
        assert_eq!(name(Method::PATCH, "accept-profile"), Ok(None));
    }

    #[test]
    fn a_schema_that_is_not_served_is_refused_with_those_that_are() {
        let refused = wanted(&parts(Method::GET, "accept-profile", "x"), &served()).unwrap_err();
        assert_eq!((refused.status.as_u16(), &*refused.code), (406, "PGRST106"));
        assert!(refused.hint.unwrap().contains("public, größe"));
    }

    #[test]
    fn the_schema_is_told_only_where_there_are_several() {
        let told = |served: &[String]| {
            let mut response = Response::new(body::empty());
            tell(&mut response, &parts(Method::GET, "x", "y"), served);
            response.headers().get(CONTENT_PROFILE).cloned()
        };
        assert_eq!(told(&served()).unwrap(), "public");
        assert_eq!(told(&served()[..1]), None);
    }
}
