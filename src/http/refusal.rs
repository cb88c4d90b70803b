//! What the edge refuses by itself, before any other room was asked.
//!
//! Each refusal is one status and one sentence. On the API's own paths it is told in the shape its
//! clients parse (`code`, `message`, `details`, `hint`), elsewhere as RFC 9457 problem+json. It
//! repeats nothing of the request: no byte of a client's comes back from here.

use hyper::StatusCode;
use hyper::header::{ACCEPT_ENCODING, ALLOW, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use serde_json::json;

use super::{Response, body};

/// A request that goes no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No such path.
    NotFound,
    /// The path exists, the method does not; holds the methods that do, as `Allow` lists them.
    Method(&'static str),
    /// The path and query are longer than this many bytes.
    UriTooLong(usize),
    /// The header fields are longer than this many bytes.
    HeadTooLarge(usize),
    /// Not one `Host`, as HTTP/1.1 wants it (RFC 9112, section 3.2).
    NotOneHost,
    /// A page of an origin that is not allowed wants to write or to watch.
    ForeignOrigin,
    /// The relay is asked by a name that anybody could have given it.
    UnknownHost,
    /// The body is compressed.
    BodyEncoded,
    /// The body is larger than this many bytes.
    BodyTooLarge(usize),
    /// The body did not arrive in time.
    BodyTooSlow,
    /// All clients together are sending as much as is taken at once.
    BodiesCrowded,
    /// The body broke off.
    BodyBroken,
    /// All clients together leave as much untaken as is kept.
    AnswersCrowded,
    /// Our own fault: the code that answers has panicked.
    Panicked,
}

/// RFC 9209: who refuses, and the code, for those who look at heads only.
pub const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

/// In which words a refusal is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// `{"code","message","details","hint"}`.
    Api,
    /// RFC 9457.
    Problem,
}

impl From<body::ReadError> for Refusal {
    fn from(error: body::ReadError) -> Self {
        match error {
            body::ReadError::TooLarge { limit } => Self::BodyTooLarge(limit),
            body::ReadError::TooSlow { .. } => Self::BodyTooSlow,
            body::ReadError::Crowded => Self::BodiesCrowded,
            body::ReadError::Broken(_) => Self::BodyBroken,
        }
    }
}

impl Refusal {
    /// The status.
    #[must_use]
    pub fn status(self) -> StatusCode {
        match self {
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Method(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::UriTooLong(_) => StatusCode::URI_TOO_LONG,
            Self::HeadTooLarge(_) => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::ForeignOrigin => StatusCode::FORBIDDEN,
            Self::UnknownHost => StatusCode::MISDIRECTED_REQUEST,
            Self::BodyEncoded => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::BodyTooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyTooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::BodiesCrowded | Self::AnswersCrowded => StatusCode::SERVICE_UNAVAILABLE,
            Self::NotOneHost | Self::BodyBroken => StatusCode::BAD_REQUEST,
            Self::Panicked => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// `PGRST107`, `PGRST117` and `PGRST125` are the dialect's own, the others this room's.
    fn code(self) -> &'static str {
        match self {
            Self::NotFound => "PGRST125",
            Self::Method(_) => "PGRST117",
            Self::UriTooLong(_) => "RCH01",
            Self::HeadTooLarge(_) => "RCH11",
            Self::NotOneHost => "RCH14",
            Self::ForeignOrigin => "RCH02",
            Self::UnknownHost => "RCH12",
            Self::BodyEncoded => "PGRST107",
            Self::BodyTooLarge(_) => "RCH03",
            Self::BodyTooSlow => "RCH04",
            Self::BodiesCrowded => "RCH10",
            Self::BodyBroken => "RCH05",
            Self::AnswersCrowded => "RCH13",
            Self::Panicked => "RCH06",
        }
    }

    fn sentence(self) -> String {
        match self {
            Self::NotFound => "there is nothing at this path".into(),
            Self::Method(_) => "this path does not answer this method".into(),
            Self::UriTooLong(limit) => format!("the path and query exceed {limit} bytes"),
            Self::HeadTooLarge(limit) => format!("the header fields exceed {limit} bytes"),
            Self::NotOneHost => "the request has no header Host, or several".into(),
            Self::ForeignOrigin => "this origin may neither write nor watch".into(),
            Self::UnknownHost => {
                "the relay asks nobody who they are, and is not known by the name in Host".into()
            }
            Self::BodyEncoded => "the body is encoded in a way that is not taken".into(),
            Self::BodyTooLarge(limit) => format!("the body exceeds {limit} bytes"),
            Self::BodyTooSlow => "the body did not arrive in time".into(),
            Self::BodiesCrowded => "too much is being sent to the relay at once".into(),
            Self::BodyBroken => "the body broke off".into(),
            Self::AnswersCrowded => {
                "the relay keeps as many answers as it can that their clients have not taken yet"
                    .into()
            }
            Self::Panicked => "the relay made a mistake".into(),
        }
    }

    fn hint(self) -> Option<String> {
        match self {
            Self::NotFound => Some(
                "a table is at /rest/v1/{table}, its rows are chosen by filters, as in ?id=eq.7; \
                 a function is at /rest/v1/rpc/{function}, a channel at /channels/{name}"
                    .into(),
            ),
            Self::Method(allow) => Some(format!("it answers {allow}")),
            Self::ForeignOrigin => {
                Some("the operator lists the origins that may, in the relay's settings".into())
            }
            Self::UnknownHost => Some(
                "ask it by its number or as localhost, or list its name: --allow-origin https://..."
                    .into(),
            ),
            Self::UriTooLong(_) => Some(
                "ask in parts, or call a function: POST has its arguments in the body".into(),
            ),
            Self::BodyEncoded => {
                Some("send the body as it is, uncompressed and without Content-Encoding, in chunks at most".into())
            }
            Self::BodiesCrowded | Self::AnswersCrowded => Some("try again in a moment".into()),
            Self::Panicked => Some("the relay's log has it under X-Request-Id".into()),
            _ => None,
        }
    }

    /// The response, in the words of `shape`.
    #[must_use]
    pub fn respond(self, shape: Shape) -> Response {
        let status = self.status();
        let (kind, text) = match shape {
            Shape::Api => (
                "application/json; charset=utf-8",
                json!({
                    "code": self.code(),
                    "message": self.sentence(),
                    "details": null,
                    "hint": self.hint(),
                }),
            ),
            Shape::Problem => (
                "application/problem+json",
                json!({
                    "type": "about:blank",
                    "title": status.canonical_reason(),
                    "status": status.as_u16(),
                    "detail": self.sentence(),
                }),
            ),
        };
        let mut response = Response::new(body::full(text.to_string()));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        if shape == Shape::Api
            && let Ok(value) = HeaderValue::from_str(&format!("Rowcast; error={}", self.code()))
        {
            headers.insert(PROXY_STATUS, value);
        }
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("2"));
        }
        match self {
            Self::Method(allow) => {
                headers.insert(ALLOW, HeaderValue::from_static(allow));
            }
            // What would be taken (RFC 9110, section 15.5.16).
            Self::BodyEncoded => {
                headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            }
            _ => {}
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    async fn text(response: Response) -> String {
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[tokio::test]
    async fn an_api_path_refuses_in_the_shape_its_clients_parse() {
        let response = Refusal::Method("GET, HEAD").respond(Shape::Api);
        assert_eq!(response.status(), 405);
        assert_eq!(response.headers()["allow"], "GET, HEAD");
        assert_eq!(
            response.headers()["proxy-status"],
            "Rowcast; error=PGRST117"
        );
        let told: serde_json::Value = serde_json::from_str(&text(response).await).unwrap();
        assert_eq!(told["code"], "PGRST117");
        assert_eq!(told["hint"], "it answers GET, HEAD");
        assert!(told["details"].is_null() && told["message"].is_string());
    }

    #[tokio::test]
    async fn another_path_refuses_as_a_problem() {
        let response = Refusal::NotFound.respond(Shape::Problem);
        assert_eq!(
            response.headers()["content-type"],
            "application/problem+json"
        );
        let told: serde_json::Value = serde_json::from_str(&text(response).await).unwrap();
        assert_eq!(told["status"], 404);
        assert_eq!(told["title"], "Not Found");
    }
}
