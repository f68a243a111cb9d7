//! What a token must be to be believed, and each way not to be.

use ed25519_dalek::{Signer as _, SigningKey};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::access::secret::{TOKEN_LENGTH_MAX, TokenTextError};

const NOW: Timestamp = Timestamp(1_795_353_000_000);
const CLUSTER: &str = "01a20360-b8bb-7fff-bfff-ffffffffffff";

fn signing_key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

fn public_key() -> [u8; 32] {
    signing_key().verifying_key().to_bytes()
}

fn keys() -> TokenKeys {
    TokenKeys::new(issuer(CLUSTER), [public_key()])
}

fn claims() -> Claims {
    let token = TokenId::new(NOW, [1; 10]);
    let contributor = ContributorId::new(NOW, [2; 10]);
    Claims::new(token, contributor, "push:main".parse().unwrap(), NOW, 3600)
}

/// A token as the signing side writes it, by `jsonwebtoken` too.
fn mint_by(issuer: &str, claims: &Claims) -> TokenText {
    let mut header = jsonwebtoken::Header::new(Algorithm::EdDSA);
    header.typ = Some(TYPE.to_owned());
    header.kid = Some(kid(&public_key()));
    // RFC 8410, section 7: what stands before the seed.
    let prefix = data_encoding::HEXLOWER.decode(b"302e020100300506032b657004220420").unwrap();
    let pkcs8 = [prefix.as_slice(), signing_key().as_bytes()].concat();
    let key = jsonwebtoken::EncodingKey::from_ed_der(&pkcs8);
    jsonwebtoken::encode(&header, &claims.payload(issuer), &key).unwrap().parse().unwrap()
}

fn mint(claims: &Claims) -> TokenText {
    mint_by(&issuer(CLUSTER), claims)
}

/// A token of any header and claims, with a good signature.
fn forge(header: &str, claims: &str) -> String {
    let message = format!(
        "{}.{}",
        BASE64URL_NOPAD.encode(header.as_bytes()),
        BASE64URL_NOPAD.encode(claims.as_bytes())
    );
    let signature = signing_key().sign(message.as_bytes()).to_bytes();
    format!("{message}.{}", BASE64URL_NOPAD.encode(&signature))
}

fn good_header() -> Value {
    json!({"alg": "EdDSA", "typ": "at+jwt", "kid": kid(&public_key())})
}

fn good_claims() -> Value {
    let issuer = issuer(CLUSTER);
    json!({
        "iss": issuer, "aud": issuer,
        "sub": ContributorId::new(NOW, [2; 10]).to_string(), "jti": TokenId::new(NOW, [1; 10]).to_string(),
        "iat": NOW.unix_seconds(), "nbf": NOW.unix_seconds(), "exp": NOW.unix_seconds() + 3600,
        "scope": "push:main",
    })
}

/// `object` with one member set, or taken away.
fn with(mut object: Value, member: &str, value: Option<Value>) -> String {
    let members = object.as_object_mut().unwrap();
    match value {
        Some(value) => members.insert(member.to_owned(), value),
        None => members.remove(member),
    };
    object.to_string()
}

fn verify(token: &str) -> Result<Claims, TokenError> {
    keys().verify(&token.parse().unwrap(), NOW)
}

#[test]
fn a_minted_token_verifies_to_what_it_was_minted_of() {
    let token = mint(&claims());

    assert!(token.expose().starts_with("nvt_"));
    assert_eq!(keys().verify(&token, NOW), Ok(claims()));
    assert_eq!(verify(&token.expose()["nvt_".len()..]), Ok(claims()));
    assert_eq!(verify(&forge(&good_header().to_string(), &good_claims().to_string())), Ok(claims()));
}

#[test]
fn the_key_id_is_the_thumbprint_of_rfc_8037() {
    // RFC 8037, appendices A.2 and A.3.
    let key = BASE64URL_NOPAD.decode(b"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo").unwrap();

    assert_eq!(kid(&key.try_into().unwrap()), "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
}

#[test]
fn a_broken_header_is_refused() {
    let header = |member: &str, value| with(good_header(), member, value);
    let good = good_header().to_string();
    let twice = good.replacen('{', r#"{"alg":"EdDSA","#, 1);
    let table = [
        ("{}".to_owned(), TokenError::Header),
        ("null".to_owned(), TokenError::Header),
        (json!(["EdDSA", "at+jwt", kid(&public_key())]).to_string(), TokenError::Header),
        (format!("{good} x"), TokenError::Header),
        ("\u{feff}{}".to_owned(), TokenError::Header),
        (twice, TokenError::Header),
        (header("alg", None), TokenError::Header),
        (header("typ", None), TokenError::Header),
        (header("kid", None), TokenError::Header),
        (header("alg", Some(json!(["EdDSA"]))), TokenError::Header),
        (header("crit", Some(json!(["b64"]))), TokenError::Header),
        (header("b64", Some(json!(false))), TokenError::Header),
        (header("jku", Some(json!("https://example.org/jwks.json"))), TokenError::Header),
        (header("jwk", Some(json!({"kty": "OKP", "crv": "Ed25519", "x": "AA"}))), TokenError::Header),
        (header("alg", Some(json!("none"))), TokenError::Algorithm),
        (header("alg", Some(json!("None"))), TokenError::Algorithm),
        (header("alg", Some(json!("HS256"))), TokenError::Algorithm),
        (header("alg", Some(json!("ES256"))), TokenError::Algorithm),
        (header("alg", Some(json!("Ed25519"))), TokenError::Algorithm),
        (header("alg", Some(json!("eddsa"))), TokenError::Algorithm),
        (header("typ", Some(json!("JWT"))), TokenError::Type),
        (header("typ", Some(json!("application/at+jwt"))), TokenError::Type),
        (header("typ", Some(json!("AT+JWT"))), TokenError::Type),
        (header("kid", Some(json!(""))), TokenError::UnknownKey),
        (header("kid", Some(json!("../../dev/null"))), TokenError::UnknownKey),
        (header("kid", Some(json!(kid(&[9; 32])))), TokenError::UnknownKey),
        (header("kid", Some(json!(format!("{} ", kid(&public_key()))))), TokenError::UnknownKey),
    ];
    for (header, expected) in table {
        assert_eq!(verify(&forge(&header, &good_claims().to_string())), Err(expected), "{header}");
    }
}

#[test]
fn broken_claims_are_refused_even_with_a_good_signature() {
    let claims = |member: &str, value| with(good_claims(), member, value);
    let good = good_claims().to_string();
    let exp = NOW.unix_seconds() + 3600;
    let mut table = vec![
        ("[]".to_owned(), TokenError::Claims),
        (json!([issuer(CLUSTER), issuer(CLUSTER), 1, 2, 3, 4, 5, "admin"]).to_string(), TokenError::Claims),
        (format!("{good}{good}"), TokenError::Claims),
        (good.replacen('{', r#"{"scope":"admin","#, 1), TokenError::Claims),
        (claims("admin", Some(json!(true))), TokenError::Claims),
        (claims("Exp", Some(json!(exp))), TokenError::Claims),
        (claims("iss", Some(json!("narvault:other"))), TokenError::Issuer),
        (claims("iss", Some(json!(""))), TokenError::Issuer),
        (claims("aud", Some(json!("narvault:other"))), TokenError::Audience),
        (claims("aud", Some(json!([issuer(CLUSTER)]))), TokenError::ClaimType("aud")),
        (claims("sub", Some(json!("alice"))), TokenError::ClaimValue("sub")),
        (claims("jti", Some(json!("1"))), TokenError::ClaimValue("jti")),
        (claims("exp", Some(json!(-1))), TokenError::ClaimValue("exp")),
        (claims("exp", Some(json!(i64::MAX))), TokenError::ClaimValue("exp")),
        (claims("exp", Some(json!(u64::MAX))), TokenError::ClaimType("exp")),
        (claims("exp", Some(json!(exp as f64))), TokenError::ClaimType("exp")),
        (claims("exp", Some(json!(NOW.unix_seconds()))), TokenError::Times),
        (claims("nbf", Some(json!(exp))), TokenError::Times),
        (claims("scope", Some(json!(""))), TokenError::Scope),
        (claims("scope", Some(json!("everything"))), TokenError::Scope),
        (claims("scope", Some(json!(["push:main"]))), TokenError::ClaimType("scope")),
    ];
    for claim in ["iss", "aud", "sub", "jti", "iat", "nbf", "exp", "scope"] {
        table.push((claims(claim, None), TokenError::ClaimMissing(claim)));
        table.push((claims(claim, Some(Value::Null)), TokenError::ClaimMissing(claim)));
        table.push((claims(claim, Some(json!({}))), TokenError::ClaimType(claim)));
        table.push((claims(claim, Some(json!(true))), TokenError::ClaimType(claim)));
    }
    for (claims, expected) in table {
        assert_eq!(verify(&forge(&good_header().to_string(), &claims)), Err(expected), "{claims}");
    }
}

/// CVE-2026-25537: a time that is a string was taken as absent, and so as valid.
#[test]
fn a_time_that_is_a_string_is_refused_and_not_taken_as_absent() {
    let far = (NOW.unix_seconds() + 1_000_000).to_string();
    for claim in ["nbf", "exp", "iat"] {
        let token = forge(&good_header().to_string(), &with(good_claims(), claim, Some(json!(far))));
        assert_eq!(verify(&token), Err(TokenError::ClaimType(claim)), "{claim}");
    }
}

#[test]
fn a_signature_that_is_not_ours_is_refused() {
    let token = mint(&claims()).expose().to_owned();
    let (message, signature) = token.rsplit_once('.').unwrap();
    let other =
        BASE64URL_NOPAD.encode(&SigningKey::from_bytes(&[8; 32]).sign(&message.as_bytes()[4..]).to_bytes());
    let (header, claims) = message.split_once('.').unwrap();
    let richer = BASE64URL_NOPAD.encode(with(good_claims(), "scope", Some(json!("admin"))).as_bytes());
    // Of the last character of 64 bytes only two bits count; another spelling of them is another token text.
    let respelled = format!("{}{}", &signature[..85], if signature.ends_with('B') { 'C' } else { 'B' });
    let table = [
        (format!("{message}.{other}"), TokenError::Signature),
        (format!("{message}.{}", BASE64URL_NOPAD.encode(&[0; 64])), TokenError::Signature),
        (format!("{header}.{richer}.{signature}"), TokenError::Signature),
        (format!("{header}.{}.{signature}", &claims[1..]), TokenError::Signature),
        (format!("{message}.{respelled}"), TokenError::SignatureEncoding),
        (format!("{message}.{}", &signature[..84]), TokenError::SignatureEncoding),
        (format!("{message}.{}", BASE64URL_NOPAD.encode(&[0; 65])), TokenError::SignatureEncoding),
        (format!("{message}.A"), TokenError::SignatureEncoding),
        (format!("A.{claims}.{signature}"), TokenError::HeaderEncoding),
    ];
    for (token, expected) in table {
        assert_eq!(verify(&token), Err(expected), "{token}");
    }
}

#[test]
fn claims_that_are_not_base64url_are_refused_after_the_signature() {
    let message = format!("{}.A", BASE64URL_NOPAD.encode(good_header().to_string().as_bytes()));
    let signature = BASE64URL_NOPAD.encode(&signing_key().sign(message.as_bytes()).to_bytes());

    assert_eq!(verify(&format!("{message}.{signature}")), Err(TokenError::ClaimsEncoding));
}

/// The public key as an HMAC secret: what a checker that obeys the header falls for.
#[test]
fn the_public_key_is_no_hmac_secret() {
    let header = jsonwebtoken::Header {
        typ: Some(TYPE.to_owned()),
        kid: Some(kid(&public_key())),
        ..jsonwebtoken::Header::new(Algorithm::HS256)
    };
    let secret = jsonwebtoken::EncodingKey::from_secret(&public_key());
    let token = jsonwebtoken::encode(&header, &good_claims(), &secret).unwrap();

    assert_eq!(verify(&token), Err(TokenError::Algorithm));
}

#[test]
fn a_text_without_the_shape_of_a_token_is_refused() {
    let good = mint(&claims()).expose().to_owned();
    let table = [
        (String::new(), TokenTextError::Empty),
        ("nvt_".to_owned(), TokenTextError::Shape),
        ("..".to_owned(), TokenTextError::Shape),
        (format!("{good}.e"), TokenTextError::Shape),
        (good.replacen('.', "", 1), TokenTextError::Shape),
        (good.replacen('.', "..", 1), TokenTextError::Shape),
        (format!("{good}="), TokenTextError::Shape),
        (format!("{good}\n"), TokenTextError::Shape),
        (format!(" {good}"), TokenTextError::Shape),
        (format!("nvt_{}", good.replacen("nvt_", "nvt.", 1)), TokenTextError::Shape),
        (good.replacen("nvt_", "NVT:", 1), TokenTextError::Shape),
        (format!("{good}é"), TokenTextError::Shape),
        ("a".repeat(TOKEN_LENGTH_MAX + 1), TokenTextError::TooLong { found: TOKEN_LENGTH_MAX + 1 }),
    ];
    for (text, expected) in table {
        assert_eq!(text.parse::<TokenText>().unwrap_err(), expected, "{text:?}");
    }
}

#[test]
fn a_token_of_another_cluster_or_a_withdrawn_key_is_refused() {
    let token = mint(&claims());

    let other_cluster = TokenKeys::new(issuer("other"), [public_key()]);
    let other_keys = TokenKeys::new(issuer(CLUSTER), [[3; 32]]);
    let no_keys = TokenKeys::new(issuer(CLUSTER), []);

    assert_eq!(other_cluster.verify(&token, NOW), Err(TokenError::Issuer));
    assert_eq!(other_keys.verify(&token, NOW), Err(TokenError::UnknownKey));
    assert_eq!(no_keys.verify(&token, NOW), Err(TokenError::UnknownKey));
}

#[test]
fn of_a_token_that_was_verified_before_all_but_the_signature_is_looked_at_again() {
    let token = mint(&claims());

    let other_cluster = TokenKeys::new(issuer("other"), [public_key()]);
    let other_keys = TokenKeys::new(issuer(CLUSTER), [[3; 32]]);
    let end = NOW.plus_seconds(3600 + LEEWAY_SECONDS);

    assert_eq!(keys().verify_again(&token, NOW), keys().verify(&token, NOW));
    assert_eq!(other_cluster.verify_again(&token, NOW), Err(TokenError::Issuer));
    assert_eq!(other_keys.verify_again(&token, NOW), Err(TokenError::UnknownKey));
    assert_eq!(keys().verify_again(&token, end), Err(TokenError::Expired));
    assert_eq!(keys().verify_again(&token, NOW.plus_seconds(-LEEWAY_SECONDS - 1)), Err(TokenError::NotYet));
}

#[test]
fn a_token_holds_from_its_beginning_to_its_end_with_one_leeway() {
    let token = mint(&claims());
    let at = |seconds: i64, millis: i64| {
        keys().verify(&token, NOW.plus_seconds(seconds).plus_millis(millis)).map(|_| ())
    };

    assert_eq!(at(-LEEWAY_SECONDS, -1), Err(TokenError::NotYet));
    assert_eq!(at(-LEEWAY_SECONDS, 0), Ok(()));
    assert_eq!(at(3600 + LEEWAY_SECONDS, -1), Ok(()));
    assert_eq!(at(3600 + LEEWAY_SECONDS, 0), Err(TokenError::Expired));
}

#[test]
fn a_token_issued_in_the_future_is_refused_even_if_it_says_it_holds() {
    let future = NOW.unix_seconds() + LEEWAY_SECONDS + 1;
    let token = forge(&good_header().to_string(), &with(good_claims(), "iat", Some(json!(future))));

    assert_eq!(verify(&token), Err(TokenError::NotYet));
}

#[test]
fn the_biggest_token_stays_below_its_limit() {
    let prefix = |index: usize| format!("pull:{index:02}{}*", "a".repeat(48));
    let prefixes: Vec<String> = (0..8).map(prefix).collect();
    let scopes: Scopes = format!("{} push:{}", prefixes.join(" "), "b".repeat(42)).parse().unwrap();
    let mut claims = claims();
    claims.expires_at = Timestamp(i64::MAX);
    claims.scopes = scopes;

    let length = mint_by(&"i".repeat(64), &claims).expose().len();

    assert!(claims.scopes.to_string().len() > 490 && length <= MINTED_LENGTH_MAX, "{length}");
}

#[test]
fn lifetimes_have_a_default_and_a_bound() {
    let push = "push:main".parse().unwrap();
    let admin = "admin pull:main".parse().unwrap();

    assert_eq!(lifetime_seconds(&push, None), Ok(90 * DAY));
    assert_eq!(lifetime_seconds(&push, Some(365 * DAY)), Ok(365 * DAY));
    assert_eq!(lifetime_seconds(&push, Some(365 * DAY + 1)), Err(LifetimeError::TooLong));
    assert_eq!(lifetime_seconds(&push, Some(0)), Err(LifetimeError::Zero));
    assert_eq!(lifetime_seconds(&push, Some(u64::MAX)), Err(LifetimeError::TooLong));
    assert_eq!(lifetime_seconds(&admin, None), Ok(30 * DAY));
    assert_eq!(lifetime_seconds(&admin, Some(30 * DAY)), Ok(30 * DAY));
    assert_eq!(lifetime_seconds(&admin, Some(30 * DAY + 1)), Err(LifetimeError::AdminTooLong));
    assert_eq!(LifetimeError::AdminTooLong.to_string(), "an admin token lives at most 30 days");
}

#[test]
fn refusals_say_nothing_of_what_was_shown() {
    let secret = "hunter2hunter2";
    let token = forge(&good_header().to_string(), &with(good_claims(), secret, Some(json!(secret))));

    let refusal = verify(&token).unwrap_err();

    assert!(!format!("{refusal} {refusal:?}").contains(secret));
}

proptest! {
    #[test]
    fn what_is_minted_verifies(
        token: [u8; 10], contributor: [u8; 10], lifetime in 1u64..=LIFETIME_SECONDS_MAX,
        millis in 0i64..4_000_000_000_000, scope in "(pull|push|delete):[b-z][a-z0-9-]{0,40}[*]?",
    ) {
        let now = Timestamp(millis);
        let scopes = format!("{scope} pull:a").parse().unwrap();
        let claims = Claims::new(TokenId::new(now, token), ContributorId::new(now, contributor), scopes, now, lifetime);

        prop_assert_eq!(keys().verify(&mint(&claims), now), Ok(claims));
    }

    #[test]
    fn no_other_text_of_a_token_verifies(position in 4usize..400, byte in "[A-Za-z0-9_-]") {
        let token = mint(&claims()).expose().to_owned();
        let position = position % token.len();
        let changed = format!("{}{byte}{}", &token[..position], &token[position + 1..]);

        if changed != token
            && position >= 4
            && let Ok(changed) = changed.parse::<TokenText>()
        {
            prop_assert!(keys().verify(&changed, NOW).is_err());
        }
    }

    #[test]
    fn no_text_panics(text in "[A-Za-z0-9_-]{1,40}\\.[A-Za-z0-9_-]{1,40}\\.[A-Za-z0-9_-]{1,90}", json: String) {
        let _ = verify(&text);
        let _ = verify(&forge(&good_header().to_string(), &format!("{json} ")));
        let _ = verify(&forge(&format!("{json} "), "{}"));
    }
}
