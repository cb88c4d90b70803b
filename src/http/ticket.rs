//! The one-time ticket in the query of a stream, on its way past everybody who could tell it.

use hyper::http::request::Parts;
use hyper::http::uri::{PathAndQuery, Uri};

use crate::auth::tickets::has_form;

/// A ticket on its way from the URL to whoever redeems it. It has no `Debug` that shows it.
#[derive(Clone)]
pub enum Ticket {
    /// As it was sent.
    One(String),
    /// Which one is meant cannot be told.
    Several,
}

/// Takes the ticket out of the URL, so that no room reads it as a filter, echoes it or logs it.
/// A `ticket` that has not the form of one is a filter on a column of that name, and stays.
pub fn take(parts: &mut Parts) {
    let Some(query) = parts.uri.query() else {
        return;
    };
    let mut found = None;
    let mut kept: Vec<&str> = Vec::new();
    for piece in query.split('&') {
        match ticket(piece) {
            None => kept.push(piece),
            Some(ticket) => {
                found = Some(match found {
                    None => Ticket::One(ticket),
                    Some(_) => Ticket::Several,
                });
            }
        }
    }
    if let Some(ticket) = found
        && let Some(uri) = with_query(&parts.uri, &kept.join("&"))
    {
        parts.uri = uri;
        parts.extensions.insert(ticket);
    }
}

fn ticket(piece: &str) -> Option<String> {
    let (name, value) = form_urlencoded::parse(piece.as_bytes()).next()?;
    (name == "ticket" && has_form(&value)).then(|| value.into_owned())
}

fn with_query(uri: &Uri, query: &str) -> Option<Uri> {
    let path = if query.is_empty() {
        PathAndQuery::try_from(uri.path())
    } else {
        PathAndQuery::try_from(format!("{}?{query}", uri.path()))
    };
    let mut pieces = uri.clone().into_parts();
    pieces.path_and_query = Some(path.ok()?);
    Uri::from_parts(pieces).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_leaves_the_url_and_a_filter_of_that_name_stays() {
        let ticket = "t".repeat(43);
        for (before, after) in [
            (format!("/rest/v1/t?ticket={ticket}"), "/rest/v1/t"),
            (
                format!("/rest/v1/t?a=eq.1&ticket={ticket}&b=is.null"),
                "/rest/v1/t?a=eq.1&b=is.null",
            ),
            (format!("/rest/v1/t?%74icket={ticket}"), "/rest/v1/t"),
            (
                "/rest/v1/t?ticket=eq.7".to_owned(),
                "/rest/v1/t?ticket=eq.7",
            ),
            ("/rest/v1/t?".to_owned(), "/rest/v1/t?"),
        ] {
            let request = hyper::Request::builder().uri(&before);
            let mut parts = request.body(()).unwrap().into_parts().0;
            take(&mut parts);
            assert_eq!(parts.uri, after);
            let taken = parts.extensions.get::<Ticket>().is_some();
            assert_eq!(taken, before.contains(&ticket), "{before}");
            assert!(!format!("{parts:?}").contains(&ticket));
        }
    }
}
