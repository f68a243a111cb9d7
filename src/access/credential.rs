//! The `Authorization` header of a request: none, a token, or something that is refused.
//!
//! Never turns a bad credential into no credential: whatever is not exactly one well-formed token is
//! [`Credential::Malformed`], and the caller is refused. Nix only speaks Basic, from netrc or the URL.

use data_encoding::BASE64;
use zeroize::Zeroizing;

use super::secret::{TOKEN_LENGTH_MAX, TokenText, TokenTextError};

/// The longest header value that is looked at, in bytes: the longest token in base-64, and a user name.
pub const AUTHORIZATION_LENGTH_MAX: usize = 2 * TOKEN_LENGTH_MAX;

/// What a request shows to say who makes it.
#[derive(Debug)]
pub enum Credential {
    /// There is no `Authorization` header.
    None,
    /// A text shaped like a token. Not verified.
    Token(TokenText),
    /// There is a header, and it holds no token: the request is refused.
    Malformed(Malformed),
}

/// Why an `Authorization` header holds no token. Never holds any of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("more than one Authorization header")]
    Repeated,
    #[error("Authorization header is {found} bytes, at most {AUTHORIZATION_LENGTH_MAX} are looked at")]
    TooLong { found: usize },
    #[error("Authorization header is not ASCII")]
    NotAscii,
    #[error("Authorization scheme is neither Basic nor Bearer")]
    Scheme,
    #[error("Authorization header has a scheme and nothing else")]
    NoValue,
    #[error("Basic credential is not base-64")]
    Base64,
    #[error("Basic credential is not UTF-8")]
    NotUtf8,
    #[error("Basic credential has no colon")]
    NoColon,
    #[error("Basic credential has neither a user name nor a password")]
    Empty,
    #[error("Basic password is not a token")]
    Password(#[source] TokenTextError),
    #[error("Basic user name without a password is not a token")]
    UserName(#[source] TokenTextError),
    #[error("Bearer credential is not a token")]
    Bearer(#[source] TokenTextError),
}

impl Credential {
    /// Reads all values of the `Authorization` header of one request.
    pub fn from_headers<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut values = values.into_iter();
        let Some(value) = values.next() else {
            return Self::None;
        };
        if values.next().is_some() {
            return Self::Malformed(Malformed::Repeated);
        }
        match parse(value) {
            Ok(token) => Self::Token(token),
            Err(malformed) => Self::Malformed(malformed),
        }
    }
}

/// Reads one value: `Basic <base-64 of user:password>` or `Bearer <token>` (RFC 7617, RFC 6750). The scheme is
/// case-insensitive, one or more spaces follow it (RFC 9110, section 11.4).
fn parse(value: &[u8]) -> Result<TokenText, Malformed> {
    if value.len() > AUTHORIZATION_LENGTH_MAX {
        return Err(Malformed::TooLong { found: value.len() });
    }
    if !value.is_ascii() {
        return Err(Malformed::NotAscii);
    }
    let text = std::str::from_utf8(value).expect("ASCII: checked above");
    let (scheme, rest) = text.split_once(' ').unwrap_or((text, ""));
    let credential = rest.trim_start_matches(' ');
    let basic = scheme.eq_ignore_ascii_case("Basic");
    if !basic && !scheme.eq_ignore_ascii_case("Bearer") {
        return Err(Malformed::Scheme);
    }
    if credential.is_empty() {
        return Err(Malformed::NoValue);
    }
    if basic { parse_basic(credential) } else { credential.parse().map_err(Malformed::Bearer) }
}

/// The token is the password, whatever the user name; or the user name, if the password is empty
/// (`http://token@host`).
fn parse_basic(credential: &str) -> Result<TokenText, Malformed> {
    let bytes = Zeroizing::new(BASE64.decode(credential.as_bytes()).map_err(|_| Malformed::Base64)?);
    let text = std::str::from_utf8(&bytes).map_err(|_| Malformed::NotUtf8)?;
    match text.split_once(':').ok_or(Malformed::NoColon)? {
        ("", "") => Err(Malformed::Empty),
        (user, "") => user.parse().map_err(Malformed::UserName),
        (_, password) => password.parse().map_err(Malformed::Password),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TOKEN: &str = "nvt_aa.bb.cc";

    fn basic(user_and_password: &[u8]) -> Vec<u8> {
        format!("Basic {}", BASE64.encode(user_and_password)).into_bytes()
    }

    fn read(value: &[u8]) -> Credential {
        Credential::from_headers([value])
    }

    #[test]
    fn a_token_is_found_where_nix_and_people_put_it() {
        let bearer = format!("Bearer {TOKEN}").into_bytes();
        let table = [
            basic(format!("alice:{TOKEN}").as_bytes()),
            basic(format!(":{TOKEN}").as_bytes()),
            basic(format!("{TOKEN}:").as_bytes()),
            basic(format!("u@x é:{}", &TOKEN[4..]).as_bytes()),
            bearer.clone(),
            bearer.to_ascii_lowercase(),
            format!("BEARER   {TOKEN}").into_bytes(),
            format!("bAsIc {}", BASE64.encode(format!("x:{TOKEN}").as_bytes())).into_bytes(),
        ];
        for value in table {
            match read(&value) {
                Credential::Token(token) => assert_eq!(token.expose(), TOKEN),
                other => panic!("{other:?}: {}", String::from_utf8_lossy(&value)),
            }
        }
    }

    #[test]
    fn only_a_missing_header_is_no_credential() {
        assert!(matches!(Credential::from_headers([]), Credential::None));
    }

    #[test]
    fn a_bad_credential_is_refused_and_never_anonymous() {
        use TokenTextError::{Empty, Shape, TooLong};
        let long_token = "a".repeat(TOKEN_LENGTH_MAX + 1);
        let long_header = [b"Bearer ".as_slice(), &vec![b'a'; AUTHORIZATION_LENGTH_MAX]].concat();
        let table: Vec<(Vec<u8>, Malformed)> = vec![
            (b"".to_vec(), Malformed::Scheme),
            (b" ".to_vec(), Malformed::Scheme),
            (TOKEN.as_bytes().to_vec(), Malformed::Scheme),
            (format!("Token {TOKEN}").into_bytes(), Malformed::Scheme),
            (b"Digest username=\"a\"".to_vec(), Malformed::Scheme),
            (format!("Bearer\t{TOKEN}").into_bytes(), Malformed::Scheme),
            (format!(" Bearer {TOKEN}").into_bytes(), Malformed::Scheme),
            (b"Bearer".to_vec(), Malformed::NoValue),
            (b"Bearer ".to_vec(), Malformed::NoValue),
            (b"Basic   ".to_vec(), Malformed::NoValue),
            (b"Bearer n\xffo".to_vec(), Malformed::NotAscii),
            (long_header.clone(), Malformed::TooLong { found: long_header.len() }),
            (b"Bearer null".to_vec(), Malformed::Bearer(Shape)),
            (format!("Bearer {TOKEN} ").into_bytes(), Malformed::Bearer(Shape)),
            (format!("Bearer {TOKEN},{TOKEN}").into_bytes(), Malformed::Bearer(Shape)),
            (
                format!("Bearer {long_token}").into_bytes(),
                Malformed::Bearer(TooLong { found: TOKEN_LENGTH_MAX + 1 }),
            ),
            (b"Basic !!!!".to_vec(), Malformed::Base64),
            (b"Basic YTpi=".to_vec(), Malformed::Base64),
            (b"Basic YTpiYw".to_vec(), Malformed::Base64),
            (b"Basic YTpi YTpi".to_vec(), Malformed::Base64),
            (basic(b"a:\xff\xfe"), Malformed::NotUtf8),
            (basic(TOKEN.as_bytes()), Malformed::NoColon),
            (basic(b":"), Malformed::Empty),
            (basic(b"alice:hunter2"), Malformed::Password(Shape)),
            (basic(b"alice: "), Malformed::Password(Shape)),
            (basic(format!("{TOKEN}:x").as_bytes()), Malformed::Password(Shape)),
            (basic(format!("a:{TOKEN}\n").as_bytes()), Malformed::Password(Shape)),
            (basic(format!("a:b:{TOKEN}").as_bytes()), Malformed::Password(Shape)),
            (basic(b"a:nvt_"), Malformed::Password(Shape)),
            (basic(b"alice:"), Malformed::UserName(Shape)),
        ];
        for (value, expected) in table {
            match read(&value) {
                Credential::Malformed(found) => {
                    assert_eq!(found, expected, "{:?}", String::from_utf8_lossy(&value));
                }
                other => panic!("{other:?}: {:?}", String::from_utf8_lossy(&value)),
            }
        }
        assert_eq!("".parse::<TokenText>().unwrap_err(), Empty);
    }

    #[test]
    fn two_headers_are_refused_even_if_both_are_good() {
        let value = format!("Bearer {TOKEN}").into_bytes();

        let credential = Credential::from_headers([value.as_slice(), value.as_slice()]);

        assert!(matches!(credential, Credential::Malformed(Malformed::Repeated)));
    }

    proptest! {
        #[test]
        fn no_header_becomes_no_credential(value: Vec<u8>, near in "(Basic|Bearer|basic) ?[a-zA-Z0-9+/=:. _-]{0,40}") {
            for value in [value, near.into_bytes()] {
                prop_assert!(!matches!(read(&value), Credential::None));
            }
        }

        #[test]
        fn any_user_name_goes_with_a_token_as_password(user in "[^:]{0,40}") {
            let credential = read(&basic(format!("{user}:{TOKEN}").as_bytes()));
            prop_assert!(matches!(credential, Credential::Token(_)));
        }
    }
}
