//! Tokens that attackers, careless issuers and other programs send, each with the answer it gets;
//! and one good token for every algorithm, so that the table cannot pass by refusing everything.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE, URL_SAFE_NO_PAD as B64};
use proptest::prelude::*;
use ring::rand::SystemRandom;
use ring::signature::{
    self, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair, RsaEncoding, RsaKeyPair,
};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};

use super::super::*;
use TokenError as E;

const SECRET: &str = "correct horse battery staple, twice over: correct horse battery staple";
const NOW: i64 = 1_800_000_000;

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW.unsigned_abs())
}

fn settings() -> Settings {
    Settings {
        secret: Some(Secret::new(SECRET)),
        ..Settings::default()
    }
}

fn judge(settings: Settings, token: &str) -> Result<Identity, TokenError> {
    let authenticator = Authenticator::new(settings).unwrap();
    futures::executor::block_on(authenticator.verify(token, now()))
}

fn signed(header: &str, claims: &str) -> String {
    signed_with(SECRET.as_bytes(), ring::hmac::HMAC_SHA256, header, claims)
}

fn signed_with(
    secret: &[u8],
    algorithm: ring::hmac::Algorithm,
    header: &str,
    claims: &str,
) -> String {
    let message = format!("{}.{}", B64.encode(header), B64.encode(claims));
    let key = ring::hmac::Key::new(algorithm, secret);
    let tag = ring::hmac::sign(&key, message.as_bytes());
    format!("{message}.{}", B64.encode(tag))
}

const HS256: &str = r#"{"alg":"HS256","typ":"JWT"}"#;
const GOOD: &str = r#"{"sub":"ann","role":"web_user","exp":1800000060}"#;

fn with_header(header: &str) -> String {
    signed(header, GOOD)
}

fn with_claims(claims: &str) -> String {
    signed(HS256, claims)
}

/// Good claims but for this text in place of the value of `exp`.
fn with_expiry(expiry: &str) -> String {
    with_claims(&format!(r#"{{"role":"web_user","exp":{expiry}}}"#))
}

fn with_member(member: &str) -> String {
    with_claims(&format!(
        r#"{{"role":"web_user","exp":1800000060,{member}}}"#
    ))
}

fn unsigned(header: &str) -> String {
    format!("{}.{}.", B64.encode(header), B64.encode(GOOD))
}

/// Headers over a genuine signature.
const HEADERS: &[(&str, TokenError)] = &[
    ("{}", E::Algorithm),
    (r#"{"alg":"none"}"#, E::Algorithm),
    (r#"{"alg":"None"}"#, E::Algorithm),
    (r#"{"alg":"NONE"}"#, E::Algorithm),
    (r#"{"alg":"nOnE"}"#, E::Algorithm),
    (r#"{"alg":""}"#, E::Algorithm),
    (r#"{"alg":null}"#, E::Algorithm),
    (r#"{"alg":["HS256"]}"#, E::Algorithm),
    (r#"{"alg":"hs256"}"#, E::Algorithm),
    (r#"{"alg":"HS256 "}"#, E::Algorithm),
    (r#"{"alg":"HS1"}"#, E::Algorithm),
    (r#"{"alg":"ES256K"}"#, E::Algorithm),
    (r#"{"alg":"none","alg":"HS256"}"#, E::Malformed),
    (r#"{"alg":"RS256"}"#, E::OtherAlgorithm),
    (r#"{"alg":"ES256"}"#, E::OtherAlgorithm),
    (r#"{"alg":"EdDSA"}"#, E::OtherAlgorithm),
    (r#"{"alg":"HS384"}"#, E::Signature),
    (r#"{"alg":"HS256","crit":["exp"]}"#, E::Critical),
    (r#"{"alg":"HS256","crit":[]}"#, E::Critical),
    (r#"{"alg":"HS256","crit":null}"#, E::Critical),
    (r#"{"alg":"HS256","b64":false}"#, E::Critical),
    (r#"{"alg":"HS256","b64":false,"crit":["b64"]}"#, E::Critical),
    (r#"{"alg":"HS256","b64":"true"}"#, E::Critical),
    (r#"{"alg":"HS256","kid":1}"#, E::KeyId),
    (r#"{"alg":"HS256","kid":null}"#, E::KeyId),
    (r#"{"alg":"HS256","kid":["a"]}"#, E::KeyId),
    ("[]", E::Malformed),
    ("\"HS256\"", E::Malformed),
    ("\u{feff}{\"alg\":\"HS256\"}", E::Malformed),
    (r#"{"alg":"HS256"}{"alg":"none"}"#, E::Malformed),
    (r#"{"alg":"HS256",}"#, E::Malformed),
];

/// Values of `exp` under a genuine signature.
const EXPIRIES: &[(&str, TokenError)] = &[
    ("null", E::NotATime("exp")),
    ("\"1800000060\"", E::NotATime("exp")),
    ("1800000060.5e1", E::NotATime("exp")),
    ("\"1800000060.5\"", E::NotATime("exp")),
    ("-1800000060.5", E::NotATime("exp")),
    ("18e8", E::NotATime("exp")),
    ("1e308", E::NotATime("exp")),
    ("1e999", E::Malformed),
    ("-1", E::NotATime("exp")),
    ("-0", E::NotATime("exp")),
    ("true", E::NotATime("exp")),
    ("[1800000060]", E::NotATime("exp")),
    ("9223372036854775807", E::NotATime("exp")),
    ("9223372036854775808", E::NotATime("exp")),
    ("1800000060000", E::NotATime("exp")),
    ("0", E::Expired),
    ("1799999969", E::Expired),
    ("1799999970", E::Expired),
    ("1799999970.9", E::Expired),
    ("1,\"exp\":1800000060", E::Malformed),
    ("1,\"\\u0065xp\":1800000060", E::Malformed),
];

/// Members beside a good role and expiry, under a genuine signature.
const MEMBERS: &[(&str, TokenError)] = &[
    (r#""role":"other""#, E::Malformed),
    (r#""app":{"a":1,"a":2}"#, E::Malformed),
    (r#""nbf":1800000031"#, E::NotYet),
    (r#""nbf":"1""#, E::NotATime("nbf")),
    (r#""nbf":null"#, E::NotATime("nbf")),
    (r#""iat":1800000031"#, E::NotYet),
    (r#""iat":15e-1"#, E::NotATime("iat")),
    (r#""aud":7"#, E::Type("aud")),
    (r#""aud":null"#, E::Type("aud")),
    (r#""aud":["us",7]"#, E::Type("aud")),
    (r#""aud":{"us":1}"#, E::Type("aud")),
    (r#""iss":["us"]"#, E::Type("iss")),
    (r#""iss":null"#, E::Type("iss")),
];

/// Whole claims under a genuine signature.
const CLAIMS: &[(&str, TokenError)] = &[
    ("[]", E::Malformed),
    ("{exp:1}", E::Malformed),
    ("{}", E::NoExpiry),
    (r#"{"role":"web_user"}"#, E::NoExpiry),
    (r#"{"exp":1800000060}"#, E::NoRole),
    (r#"{"exp":1800000060,"role":""}"#, E::Role),
    (r#"{"exp":1800000060,"role":7}"#, E::Role),
    (r#"{"exp":1800000060,"role":null}"#, E::Role),
    (r#"{"exp":1800000060,"role":["web_user"]}"#, E::Role),
    (r#"{"exp":1800000060,"role":"none"}"#, E::RoleRefused),
    (r#"{"exp":1800000060,"role":"NONE"}"#, E::RoleRefused),
    (r#"{"exp":1800000060,"role":"pg_monitor"}"#, E::RoleRefused),
    (r#"{"exp":1800000060,"role":"PG_monitor"}"#, E::RoleRefused),
    (r#"{"exp":1800000060,"role":"a\u0000b"}"#, E::RoleRefused),
];

type Vectors = Vec<(String, String, TokenError)>;

/// The tables above as tokens.
fn tables() -> Vectors {
    let headers = HEADERS
        .iter()
        .map(|(text, told)| (*text, with_header(text), *told));
    let expiries = EXPIRIES
        .iter()
        .map(|(text, told)| (*text, with_expiry(text), *told));
    let members = MEMBERS
        .iter()
        .map(|(text, told)| (*text, with_member(text), *told));
    let claims = CLAIMS
        .iter()
        .map(|(text, told)| (*text, with_claims(text), *told));
    headers
        .chain(expiries)
        .chain(members)
        .chain(claims)
        .map(|(name, token, told)| (name.to_owned(), token, told))
        .collect()
}

/// Signatures that are nobody's, on a good header and good claims.
fn signatures() -> Vectors {
    let good = with_claims(GOOD);
    let (message, own) = good.rsplit_once('.').unwrap();
    let raw = B64.decode(own).unwrap();
    let by = |secret: &[u8]| signed_with(secret, ring::hmac::HMAC_SHA256, HS256, GOOD);
    let with = |signature: String| format!("{message}.{signature}");
    let vectors = [
        ("stripped", with(String::new()), E::Malformed),
        ("stripped with its dot", message.to_owned(), E::Malformed),
        ("cut", with(B64.encode(&raw[..16])), E::Signature),
        (
            "longer",
            with(B64.encode([&raw[..], &[0]].concat())),
            E::Signature,
        ),
        ("of zeros", with(B64.encode([0; 32])), E::Signature),
        ("of one zero", with("AA".into()), E::Signature),
        ("by another secret", by(&[7; 64]), E::Signature),
        ("by no secret", by(b""), E::Signature),
        ("padded", with(URL_SAFE.encode(&raw)), E::Malformed),
        (
            "in the other alphabet",
            with(STANDARD.encode([0xfb; 32])),
            E::Malformed,
        ),
        ("in another spelling", with(spare_bits(own)), E::Malformed),
    ];
    vectors
        .map(|(name, token, told)| (name.to_owned(), token, told))
        .to_vec()
}

/// What is not a token of three clean parts.
fn forms() -> Vectors {
    let good = with_claims(GOOD);
    let parts: Vec<_> = good.split('.').collect();
    let [header, payload, signature] = parts[..] else {
        panic!("a token has three parts");
    };
    let changed = B64.encode(GOOD.replace("ann", "bob"));
    let no_text = B64.encode(b"{\"alg\":\"\xff\"}");
    let padded = URL_SAFE.encode("{\"a\":1}");
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(2000), "]".repeat(2000));
    let kid = json!({ "alg": "HS256", "kid": "k".repeat(129) }).to_string();
    let huge = with_member(&format!("\"x\":\"{}\"", "x".repeat(8192)));
    let long = format!(r#"{{"exp":1800000060,"role":"{}"}}"#, "r".repeat(64));
    let vectors = [
        (
            "another payload",
            format!("{header}.{changed}.{signature}"),
            E::Signature,
        ),
        (
            "header no UTF-8",
            format!("{no_text}.{payload}.{signature}"),
            E::Malformed,
        ),
        (
            "padding",
            format!("{header}.{padded}.{signature}"),
            E::Malformed,
        ),
        (
            "none, unsigned",
            unsigned(r#"{"alg":"none"}"#),
            E::Algorithm,
        ),
        ("HS256, unsigned", unsigned(HS256), E::Malformed),
        ("kid of 129 bytes", with_header(&kid), E::KeyId),
        ("role of 64 bytes", with_claims(&long), E::RoleRefused),
        ("blank before", format!(" {good}"), E::Malformed),
        ("blank after", format!("{good} "), E::Malformed),
        (
            "newline inside",
            format!("{header}.\n{payload}.{signature}"),
            E::Malformed,
        ),
        ("NUL after", format!("{good}\0"), E::Malformed),
        ("not ASCII", format!("{good}é"), E::Malformed),
        ("empty", String::new(), E::Malformed),
        ("dot", ".".into(), E::Malformed),
        ("two dots", "..".into(), E::Malformed),
        ("no header", format!(".{payload}.{signature}"), E::Malformed),
        ("no payload", format!("{header}..{signature}"), E::Malformed),
        ("four parts", format!("{good}.AA"), E::Malformed),
        (
            "JWE",
            format!("{header}.AA.AA.{payload}.{signature}"),
            E::Malformed,
        ),
        (
            "JSON",
            format!(r#"{{"payload":"{payload}"}}"#),
            E::Malformed,
        ),
        ("huge", huge, E::TooLong),
        ("huge and hollow", ".".repeat(1 << 20), E::TooLong),
        ("deep", with_claims(&deep), E::Malformed),
    ];
    vectors
        .map(|(name, token, told)| (name.to_owned(), token, told))
        .to_vec()
}

/// The same signature in another spelling: the last letter holds two bits that mean nothing.
fn spare_bits(signature: &str) -> String {
    const LETTERS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let (rest, last) = signature.split_at(signature.len() - 1);
    let next = LETTERS.find(last).unwrap() + 1;
    format!("{rest}{}", &LETTERS[next..=next])
}

#[test]
fn every_hostile_token_is_refused_for_its_own_reason() {
    let vectors = [tables(), signatures(), forms()].concat();
    assert!(vectors.len() >= 100, "{}", vectors.len());
    let wrong: Vec<_> = vectors
        .into_iter()
        .map(|(name, token, expected)| (name, judge(settings(), &token), Err(expected)))
        .filter(|(_, told, expected)| told != expected)
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn what_lies_within_the_skew_is_taken() {
    for (name, token) in [
        ("exp 29 s ago", with_expiry("1799999971")),
        ("exp at the end of 9999", with_expiry("253402300799")),
        ("nbf in 30 s", with_member(r#""nbf":1800000030"#)),
        ("iat in 30 s", with_member(r#""iat":1800000030"#)),
        ("b64 true", with_header(r#"{"alg":"HS256","b64":true}"#)),
        (
            "keys of its own",
            with_header(
                r#"{"alg":"HS256","jku":"http://evil.example","x5u":"x","x5c":["x"],"jwk":{"kty":"oct","k":"AA"}}"#,
            ),
        ),
        (
            "a kid while our secret has none",
            with_header(r#"{"alg":"HS256","kid":"../../dev/null"}"#),
        ),
        (
            "a role of 63 bytes",
            with_claims(&format!(
                r#"{{"exp":1800000060,"role":"{}"}}"#,
                "r".repeat(63)
            )),
        ),
        (
            "aud while none is configured",
            with_member(r#""aud":["anybody"]"#),
        ),
    ] {
        assert!(judge(settings(), &token).is_ok(), "{name}");
    }
}

#[test]
fn a_configured_audience_and_issuer_must_be_there() {
    let strict = || Settings {
        audience: Some("us".into()),
        issuer: Some("https://issuer.example".into()),
        ..settings()
    };
    let claims = |members: &str| judge(strict(), &with_member(members)).map(|_| ());
    let issuer = r#""iss":"https://issuer.example""#;
    assert_eq!(claims(&format!(r#""aud":"us",{issuer}"#)), Ok(()));
    assert_eq!(claims(&format!(r#""aud":["them","us"],{issuer}"#)), Ok(()));
    for aud in ["\"them\"", "\"US\"", "\"us \"", "[]", "[\"them\"]", "\"\""] {
        let told = claims(&format!(r#""aud":{aud},{issuer}"#));
        assert_eq!(told, Err(E::Audience), "{aud}");
    }
    assert_eq!(claims(issuer), Err(E::Audience));
    assert_eq!(claims(r#""aud":"us""#), Err(E::Issuer));
    for iss in ["", "https://issuer.example/", "https://issuer.example.evil"] {
        let told = claims(&format!(r#""aud":"us","iss":"{iss}""#));
        assert_eq!(told, Err(E::Issuer), "{iss}");
    }
}

#[test]
fn only_listed_roles_are_taken_when_there_is_a_list() {
    let settings = Settings {
        roles: Some(vec!["web_user".into()]),
        anon_role: Some("web_anon".into()),
        ..settings()
    };
    let role = |role: &str| {
        let token = with_claims(&format!(r#"{{"exp":1800000060,"role":"{role}"}}"#));
        judge(settings.clone(), &token).map(|identity| identity.role.unwrap())
    };
    assert_eq!(role("web_user"), Ok("web_user".into()));
    assert_eq!(role("web_anon"), Ok("web_anon".into()));
    assert_eq!(role("postgres"), Err(E::RoleRefused));
    assert_eq!(role("Web_user"), Err(E::RoleRefused));
    let without = judge(settings.clone(), &with_claims(r#"{"exp":1800000060}"#)).unwrap();
    assert_eq!(without.role.as_deref(), Some("web_anon"));
    assert!(without.verified);
}

#[test]
fn an_identity_holds_all_claims_and_its_context_those_that_stay() {
    let claims = r#"{"sub":"ann","exp":1800000060,"iat":1,"nbf":1,"jti":"x","big":18446744073709551617,"app":{"role":"web_user"}}"#;
    let settings = Settings {
        role_claim: Some(".app.role".into()),
        ..settings()
    };
    let identity = judge(settings, &with_claims(claims)).unwrap();
    assert_eq!(identity.expires, Some(now() + Duration::from_mins(1)));
    assert_eq!(
        &*identity.claims,
        r#"{"app":{"role":"web_user"},"big":18446744073709551617,"exp":1800000060,"iat":1,"jti":"x","nbf":1,"role":"web_user","sub":"ann"}"#
    );
    assert_eq!(
        identity.context_claims(),
        r#"{"app":{"role":"web_user"},"big":18446744073709551617,"role":"web_user","sub":"ann"}"#
    );
}

#[test]
fn without_a_token_one_is_anonymous_or_nobody() {
    let anonymous = |settings| Authenticator::new(settings).unwrap().anonymous();
    assert_eq!(anonymous(settings()), None);
    let open = anonymous(Settings::default()).unwrap();
    assert_eq!((open.role, &*open.claims), (None, "{}"));
    let named = anonymous(Settings {
        anon_role: Some("web_anon".into()),
        ..settings()
    });
    let named = named.unwrap();
    assert_eq!(&*named.claims, r#"{"role":"web_anon"}"#);
    assert!(!named.verified && named.expires.is_none());
}

/// A key pair of each kind, as an issuer has them.
struct Issuer {
    rsa: RsaKeyPair,
    p256: EcdsaKeyPair,
    p384: EcdsaKeyPair,
    ed25519: Ed25519KeyPair,
}

impl Issuer {
    fn new() -> Self {
        let pem = include_bytes!("../../../tests/keys/rsa2048.pem");
        let rsa = PrivatePkcs8KeyDer::from_pem_slice(pem).unwrap();
        let chance = SystemRandom::new();
        let curve = |algorithm: &'static EcdsaSigningAlgorithm| {
            let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &chance).unwrap();
            EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &chance).unwrap()
        };
        let ed25519 = Ed25519KeyPair::generate_pkcs8(&chance).unwrap();
        Self {
            rsa: RsaKeyPair::from_pkcs8(rsa.secret_pkcs8_der()).unwrap(),
            p256: curve(&signature::ECDSA_P256_SHA256_FIXED_SIGNING),
            p384: curve(&signature::ECDSA_P384_SHA384_FIXED_SIGNING),
            ed25519: Ed25519KeyPair::from_pkcs8(ed25519.as_ref()).unwrap(),
        }
    }

    fn modulus(&self) -> Vec<u8> {
        ring::rsa::PublicKeyComponents::<Vec<u8>>::from(self.rsa.public()).n
    }

    fn rsa_jwk(&self) -> Value {
        json!({"kty": "RSA", "kid": "rsa", "n": B64.encode(self.modulus()), "e": "AQAB"})
    }

    fn curve_jwk(kid: &str, crv: &str, pair: &EcdsaKeyPair) -> Value {
        let point = &pair.public_key().as_ref()[1..];
        let (x, y) = point.split_at(point.len() / 2);
        json!({"kty": "EC", "kid": kid, "crv": crv, "x": B64.encode(x), "y": B64.encode(y)})
    }

    fn jwks(&self) -> Value {
        json!({"keys": [
            self.rsa_jwk(),
            Self::curve_jwk("p256", "P-256", &self.p256),
            Self::curve_jwk("p384", "P-384", &self.p384),
            {"kty": "OKP", "kid": "ed", "crv": "Ed25519",
             "x": B64.encode(self.ed25519.public_key().as_ref())},
        ]})
    }

    fn token(&self, algorithm: &str, kid: Option<&str>) -> String {
        let mut header = json!({ "alg": algorithm });
        if let Some(kid) = kid {
            header["kid"] = kid.into();
        }
        let message = format!("{}.{}", B64.encode(header.to_string()), B64.encode(GOOD));
        let signature = self.sign(algorithm, message.as_bytes());
        format!("{message}.{}", B64.encode(signature))
    }

    fn sign(&self, algorithm: &str, message: &[u8]) -> Vec<u8> {
        let chance = SystemRandom::new();
        let rsa = |encoding: &'static dyn RsaEncoding| {
            let mut signature = vec![0; self.rsa.public().modulus_len()];
            self.rsa
                .sign(encoding, &chance, message, &mut signature)
                .unwrap();
            signature
        };
        let curve = |pair: &EcdsaKeyPair| pair.sign(&chance, message).unwrap().as_ref().to_vec();
        match algorithm {
            "RS256" => rsa(&signature::RSA_PKCS1_SHA256),
            "RS384" => rsa(&signature::RSA_PKCS1_SHA384),
            "RS512" => rsa(&signature::RSA_PKCS1_SHA512),
            "PS256" => rsa(&signature::RSA_PSS_SHA256),
            "PS384" => rsa(&signature::RSA_PSS_SHA384),
            "PS512" => rsa(&signature::RSA_PSS_SHA512),
            "ES256" => curve(&self.p256),
            "ES384" => curve(&self.p384),
            _ => self.ed25519.sign(message).as_ref().to_vec(),
        }
    }
}

fn keys(jwks: &Value) -> Settings {
    Settings {
        secret: Some(Secret::new(jwks.to_string())),
        ..Settings::default()
    }
}

const ASYMMETRIC: [(&str, &str); 9] = [
    ("RS256", "rsa"),
    ("RS384", "rsa"),
    ("RS512", "rsa"),
    ("PS256", "rsa"),
    ("PS384", "rsa"),
    ("PS512", "rsa"),
    ("ES256", "p256"),
    ("ES384", "p384"),
    ("EdDSA", "ed"),
];

#[test]
fn a_good_token_of_every_algorithm_is_taken() {
    let issuer = Issuer::new();
    let jwks = issuer.jwks();
    for (algorithm, kid) in ASYMMETRIC {
        for kid in [Some(kid), None] {
            let token = issuer.token(algorithm, kid);
            let identity = judge(keys(&jwks), &token);
            assert_eq!(identity.unwrap().role.unwrap(), "web_user", "{algorithm}");
        }
    }
    for (algorithm, hmac) in [
        ("HS256", ring::hmac::HMAC_SHA256),
        ("HS384", ring::hmac::HMAC_SHA384),
        ("HS512", ring::hmac::HMAC_SHA512),
    ] {
        let header = json!({ "alg": algorithm }).to_string();
        let token = signed_with(SECRET.as_bytes(), hmac, &header, GOOD);
        assert!(judge(settings(), &token).is_ok(), "{algorithm}");
    }
}

#[test]
fn a_key_judges_only_its_own_kind() {
    let issuer = Issuer::new();
    let jwks = issuer.jwks();
    for (algorithm, own) in ASYMMETRIC {
        for other in ["rsa", "p256", "p384", "ed"] {
            if other != own {
                let token = issuer.token(algorithm, Some(other));
                let told = judge(keys(&jwks), &token);
                assert_eq!(told, Err(E::OtherAlgorithm), "{algorithm} {other}");
            }
        }
        for unknown in ["", "RSA", "rsa\0", "../rsa", "' or 1=1 --", "*"] {
            let token = issuer.token(algorithm, Some(unknown));
            let told = judge(keys(&jwks), &token);
            assert_eq!(told, Err(E::UnknownKey), "{unknown}");
        }
    }
}

#[test]
fn a_public_key_is_nobodys_secret() {
    let issuer = Issuer::new();
    let jwks = issuer.jwks();
    let pem = issuer.rsa.public().as_ref().to_vec();
    let jwk = issuer.rsa_jwk().to_string().into_bytes();
    let point = issuer.p256.public_key().as_ref().to_vec();
    for secret in [pem, jwk, issuer.modulus(), point] {
        for header in [r#"{"alg":"HS256"}"#, r#"{"alg":"HS256","kid":"rsa"}"#] {
            let token = signed_with(&secret, ring::hmac::HMAC_SHA256, header, GOOD);
            assert_eq!(judge(keys(&jwks), &token), Err(E::OtherAlgorithm));
        }
    }
}

#[test]
fn a_signature_of_zeros_or_in_another_encoding_is_wrong() {
    let issuer = Issuer::new();
    let jwks = issuer.jwks();
    for (algorithm, kid) in ASYMMETRIC {
        let token = issuer.token(algorithm, Some(kid));
        let (message, _) = token.rsplit_once('.').unwrap();
        let length = issuer.sign(algorithm, b"").len();
        for signature in [
            vec![0; length],
            vec![0xff; length],
            vec![0; 1],
            vec![0x30, 6, 2, 1, 0, 2, 1, 0],
        ] {
            let forged = format!("{message}.{}", B64.encode(signature));
            assert_eq!(
                judge(keys(&jwks), &forged),
                Err(E::Signature),
                "{algorithm}"
            );
        }
    }
    let asn1 = EcdsaKeyPair::generate_pkcs8(
        &signature::ECDSA_P256_SHA256_ASN1_SIGNING,
        &SystemRandom::new(),
    );
    let pair = EcdsaKeyPair::from_pkcs8(
        &signature::ECDSA_P256_SHA256_ASN1_SIGNING,
        asn1.unwrap().as_ref(),
        &SystemRandom::new(),
    )
    .unwrap();
    let message = format!("{}.{}", B64.encode(r#"{"alg":"ES256"}"#), B64.encode(GOOD));
    let signature = pair.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
    let token = format!("{message}.{}", B64.encode(signature));
    let jwk = Issuer::curve_jwk("p256", "P-256", &pair);
    assert_eq!(judge(keys(&jwk), &token), Err(E::Signature));
}

#[test]
fn a_key_with_an_algorithm_judges_no_other() {
    let issuer = Issuer::new();
    let mut jwk = issuer.rsa_jwk();
    jwk["alg"] = "PS256".into();
    assert!(judge(keys(&jwk), &issuer.token("PS256", None)).is_ok());
    for other in ["RS256", "PS384"] {
        let told = judge(keys(&jwk), &issuer.token(other, None));
        assert_eq!(told, Err(E::OtherAlgorithm));
    }
}

#[test]
fn a_key_that_is_weak_or_for_something_else_refuses_to_start() {
    let start = |secret: String| {
        let settings = Settings {
            secret: Some(Secret::new(secret)),
            ..Settings::default()
        };
        match Authenticator::new(settings) {
            Err(SettingsError::Secret(error)) => Some(error),
            _ => None,
        }
    };
    let oct = |k: &[u8]| json!({"kty": "oct", "k": B64.encode(k)}).to_string();
    let mut short = json!({"kty": "RSA", "n": B64.encode([0xff; 128]), "e": "AQAB"});
    let mut encrypts = Issuer::new().rsa_jwk();
    encrypts["use"] = "enc".into();
    let mut wraps = Issuer::new().rsa_jwk();
    wraps["key_ops"] = json!(["wrapKey"]);
    assert_eq!(start("x".repeat(31)), Some(KeyError::ShortSecret(31)));
    assert_eq!(start(String::new()), Some(KeyError::ShortSecret(0)));
    assert_eq!(start("x".repeat(32)), None);
    assert_eq!(start(oct(&[1; 31])), Some(KeyError::ShortSecret(31)));
    assert_eq!(start(oct(&[1; 32])), None);
    assert_eq!(start(short.to_string()), Some(KeyError::RsaSize(1024)));
    short["n"] = B64.encode([&[0; 200][..], &[0xff; 128]].concat()).into();
    assert_eq!(start(short.to_string()), Some(KeyError::RsaSize(1024)));
    assert_eq!(start(encrypts.to_string()), Some(KeyError::OtherUse));
    assert_eq!(start(wraps.to_string()), Some(KeyError::OtherUse));
    assert_eq!(start("{\"kty\":".repeat(9)), Some(KeyError::NotASet));
    for (unfit, told) in [
        (
            json!({"kty": "EC", "crv": "P-521", "x": "AA", "y": "AA"}),
            KeyError::Unsupported,
        ),
        (
            json!({"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}),
            KeyError::Member("x"),
        ),
        (
            json!({"kty": "OKP", "crv": "Ed25519"}),
            KeyError::Member("x"),
        ),
        (json!({"kty": "RSA", "e": "AQAB"}), KeyError::Member("n")),
        (
            json!({"kty": "RSA", "n": "AAAA", "e": "AQAB"}),
            KeyError::Member("n"),
        ),
        (
            json!({"kty": "oct", "k": B64.encode([1; 64]), "alg": "RS256"}),
            KeyError::Unsupported,
        ),
        (json!({"k": B64.encode([1; 64])}), KeyError::Member("kty")),
        (json!({"keys": {}}), KeyError::NotASet),
    ] {
        assert_eq!(start(unfit.to_string()), Some(told), "{unfit}");
    }
}

#[test]
fn an_issuers_other_keys_are_left_out_and_the_rest_serves() {
    let issuer = Issuer::new();
    let mut set = issuer.jwks();
    let others = [
        json!({"kty": "RSA", "kid": "enc", "use": "enc", "n": "AQAB", "e": "AQAB"}),
        json!({"kty": "EC", "crv": "secp256k1", "x": "AA", "y": "AA"}),
        json!({"kty": "oct", "k": B64.encode(SECRET)}),
        json!({"kty": "new"}),
    ];
    set["keys"].as_array_mut().unwrap().splice(0..0, others);
    let read = KeySet::issued(set.to_string().as_bytes(), true).unwrap();
    let verdict = |algorithm: &str| {
        let token = issuer.token(algorithm, None);
        let parts = Parts::of(&token).unwrap();
        read.judge(
            None,
            parts.algorithm,
            parts.message.as_bytes(),
            &parts.signature,
        )
    };
    assert!(matches!(verdict("ES256"), Verdict::Genuine(_)));
    assert!(matches!(verdict("RS256"), Verdict::Genuine(_)));
    let by_secret = with_claims(GOOD);
    let parts = Parts::of(&by_secret).unwrap();
    assert_eq!(
        read.judge(
            None,
            parts.algorithm,
            parts.message.as_bytes(),
            &parts.signature
        ),
        Verdict::OtherAlgorithm,
        "a published secret is anybody's"
    );
    let many = json!({"keys": vec![json!({"kty": "new"}); 33]}).to_string();
    assert!(matches!(
        KeySet::issued(many.as_bytes(), true),
        Err(KeyError::TooMany)
    ));
}

/// Serves the key set that it is told to, over a real socket.
async fn publish(set: Arc<std::sync::Mutex<String>>) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut head = [0; 1024];
            let _read = socket.read(&mut head).await;
            let set = set.lock().unwrap().clone();
            let length = set.len();
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{set}");
            let _written = socket.write_all(answer.as_bytes()).await;
        }
    });
    format!("http://{address}/jwks.json")
}

/// The clock runs while sockets are used, and is moved in between.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

#[tokio::test]
async fn an_issuer_may_change_its_keys_while_we_run() {
    let (old, new) = (Issuer::new(), Issuer::new());
    let set = |issuer: &Issuer, kid| {
        json!({"keys": [Issuer::curve_jwk(kid, "P-256", &issuer.p256)]}).to_string()
    };
    let published = Arc::new(std::sync::Mutex::new(set(&old, "old")));
    let authenticator = Authenticator::new(Settings {
        jwks_url: Some(publish(Arc::clone(&published)).await),
        ..Settings::default()
    });
    let authenticator = authenticator.unwrap();
    let verify = async |token: String| {
        let judged = authenticator.verify(&token, now()).await;
        judged.map(|identity| identity.verified)
    };
    assert_eq!(verify(old.token("ES256", Some("old"))).await, Ok(true));
    *published.lock().unwrap() = set(&new, "new");
    let early = verify(new.token("ES256", Some("new"))).await;
    assert_eq!(early, Err(E::UnknownKey), "asked a moment ago");
    assert_eq!(verify(old.token("ES256", Some("old"))).await, Ok(true));
    pass(Duration::from_secs(30)).await;
    assert_eq!(verify(new.token("ES256", Some("new"))).await, Ok(true));
    assert_eq!(
        verify(old.token("ES256", Some("old"))).await,
        Err(E::UnknownKey)
    );
    *published.lock().unwrap() = "gone".to_owned();
    pass(Duration::from_mins(1)).await;
    assert_eq!(verify(new.token("ES256", Some("new"))).await, Ok(true));
    pass(Duration::from_hours(1)).await;
    assert_eq!(
        verify(new.token("ES256", Some("new"))).await,
        Err(E::KeysAway)
    );
}

#[tokio::test]
async fn a_key_that_its_issuer_has_not_is_told_as_unknown_beside_a_secret_too() {
    let (old, new) = (Issuer::new(), Issuer::new());
    let set = json!({"keys": [Issuer::curve_jwk("new", "P-256", &new.p256)]}).to_string();
    let authenticator = Authenticator::new(Settings {
        jwks_url: Some(publish(Arc::new(std::sync::Mutex::new(set))).await),
        ..settings()
    });
    let token = old.token("ES256", Some("old"));
    let told = authenticator.unwrap().verify(&token, now()).await;
    assert_eq!(told.map(|identity| identity.verified), Err(E::UnknownKey));
}

/// As of Python's `time.time()`.
#[test]
fn a_time_with_a_fraction_is_the_second_that_has_begun() {
    let claims = r#"{"role":"web_user","exp":1800000061.75,"nbf":1799999999.5,"iat":1799999999.0}"#;
    let identity = judge(settings(), &with_claims(claims)).unwrap();
    let end = UNIX_EPOCH + Duration::from_secs(1_800_000_061);
    assert_eq!(identity.expires, Some(end));
}

#[test]
fn what_we_sign_we_take() {
    let token = token::sign(&Secret::new(SECRET), GOOD).unwrap();
    assert!(judge(settings(), &token).is_ok());
    let jwk = json!({"kty": "oct", "kid": "one", "k": B64.encode(SECRET)});
    let token = token::sign(&Secret::new(jwk.to_string()), GOOD).unwrap();
    assert!(judge(keys(&jwk), &token).is_ok());
    let public = Secret::new(Issuer::new().jwks().to_string());
    assert_eq!(token::sign(&public, GOOD), Err(token::SignError::NoSecret));
    let twice = token::sign(&Secret::new(SECRET), r#"{"a":1,"a":2}"#);
    assert_eq!(twice, Err(token::SignError::Claims));
}

#[test]
fn nothing_secret_shows_in_debug() {
    let authenticator = Authenticator::new(settings()).unwrap();
    let ticket = authenticator
        .tickets
        .issue(
            authenticator
                .anonymous()
                .unwrap_or_else(|| Identity::without_token(None)),
            Vec::new(),
        )
        .unwrap();
    let shown = format!("{authenticator:?} {:?}", settings());
    assert!(
        !shown.contains("horse") && !shown.contains(&ticket),
        "{shown}"
    );
}

#[test]
fn settings_that_cannot_be_used_are_told() {
    let told = |settings| Authenticator::new(settings).unwrap_err().to_string();
    for never in ["", "none", "pg_monitor", "NONE"] {
        let anon = Settings {
            anon_role: Some(never.into()),
            ..settings()
        };
        assert!(told(anon).contains("can never be taken"), "{never}");
        let listed = Settings {
            roles: Some(vec!["a".into(), never.into()]),
            ..settings()
        };
        assert!(told(listed).contains("can never be taken"), "{never}");
    }
    for url in [
        "http://issuer.example/jwks",
        "ftp://localhost/",
        "jwks.json",
        "http://localhost.evil.example/",
        "http://localhost@evil.example/",
    ] {
        let remote = Settings {
            jwks_url: Some(url.into()),
            ..settings()
        };
        assert!(told(remote).contains("URL"), "{url}");
    }
    let cookie = Settings {
        cookie: Some("a b".into()),
        ..settings()
    };
    assert!(told(cookie).contains("cookie"));
    let path = Settings {
        role_claim: Some("role".into()),
        ..settings()
    };
    assert!(told(path).contains("role claim"));
    let file = Settings {
        jwks_file: Some("/nowhere/jwks.json".into()),
        ..settings()
    };
    assert!(told(file).contains("/nowhere/jwks.json"));
}

proptest! {
    #[test]
    fn no_text_panics_or_passes(token in "\\PC{0,200}") {
        prop_assert!(judge(settings(), &token).is_err());
    }

    #[test]
    fn no_three_parts_panic_or_pass(
        header in prop::collection::vec(any::<u8>(), 0..60),
        payload in prop::collection::vec(any::<u8>(), 0..60),
        signature in prop::collection::vec(any::<u8>(), 0..70),
    ) {
        let [header, payload, signature] = [header, payload, signature].map(|part| B64.encode(part));
        let token = format!("{header}.{payload}.{signature}");
        prop_assert!(judge(settings(), &token).is_err());
    }

    #[test]
    fn no_signed_claims_panic(claims in "[{]?(\"(exp|nbf|iat|aud|iss|role)\":[-0-9.e\"\\[\\]{}a-z]{0,9},?){0,4}[}]?") {
        let _judged = judge(settings(), &with_claims(&claims));
    }

    #[test]
    fn a_token_with_any_byte_changed_is_refused(at in 0_usize..1000, to in "[A-Za-z0-9_-]") {
        let good = with_claims(GOOD);
        let at = at % good.len();
        prop_assume!(good[at..=at] != to);
        let changed = format!("{}{to}{}", &good[..at], &good[at + 1..]);
        prop_assert!(judge(settings(), &changed).is_err());
    }

    #[test]
    fn no_key_set_panics(text in "\\PC{0,200}") {
        let _read = KeySet::issued(text.as_bytes(), true);
    }
}
