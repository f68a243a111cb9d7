//! Tokens on the signing side: the public key as a JWK, its thumbprint, and the minting.
//!
//! Never reads a token: checking them needs no secret and is done elsewhere.

use data_encoding::BASE64URL_NOPAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::memory::LockedBytes;

/// `typ` of every token (RFC 9068).
pub const TOKEN_TYPE: &str = "at+jwt";

/// An Ed25519 public key as it stands in `/.well-known/jwks.json` (RFC 8037).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PublicJwk {
    pub kty: &'static str,
    pub crv: &'static str,
    pub x: String,
    pub kid: String,
    pub alg: &'static str,
    #[serde(rename = "use")]
    pub usage: &'static str,
}

impl PublicJwk {
    /// The JWK of a token key's public half.
    pub fn of(public_key: &[u8; 32]) -> Self {
        Self {
            kty: "OKP",
            crv: "Ed25519",
            x: BASE64URL_NOPAD.encode(public_key),
            kid: thumbprint(public_key),
            alg: "EdDSA",
            usage: "sig",
        }
    }
}

/// The `kid` of a token key: its RFC 7638 thumbprint, over the required members in the order of their names.
pub fn thumbprint(public_key: &[u8; 32]) -> String {
    let x = BASE64URL_NOPAD.encode(public_key);
    let canonical = format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#);
    BASE64URL_NOPAD.encode(&Sha256::digest(canonical))
}

/// Writes and signs a JWT. The copies of the seed that this needs are wiped: ours here, the library's by itself.
pub(super) fn mint(
    seed: &LockedBytes,
    public_key: &[u8; 32],
    claims: &impl Serialize,
) -> Result<String, jsonwebtoken::errors::Error> {
    let mut pkcs8 = Zeroizing::new([0; PKCS8_PREFIX.len() + 32]);
    pkcs8[..PKCS8_PREFIX.len()].copy_from_slice(&PKCS8_PREFIX);
    pkcs8[PKCS8_PREFIX.len()..].copy_from_slice(seed.expose());

    let mut header = Header::new(Algorithm::EdDSA);
    header.typ = Some(TOKEN_TYPE.to_owned());
    header.kid = Some(thumbprint(public_key));
    jsonwebtoken::encode(&header, claims, &EncodingKey::from_ed_der(pkcs8.as_slice()))
}

/// What stands before the seed in a PKCS#8 document of an Ed25519 key (RFC 8410, section 7).
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;
    use jsonwebtoken::{DecodingKey, Validation};
    use serde_json::{Value, json};

    use super::*;

    /// The key of RFC 8037, appendix A.
    fn rfc_key() -> (LockedBytes, [u8; 32]) {
        let hex = |text: &str| -> [u8; 32] { HEXLOWER.decode(text.as_bytes()).unwrap().try_into().unwrap() };
        let seed = hex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60");
        let public_key = hex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a");
        (LockedBytes::copy_of(&seed).unwrap(), public_key)
    }

    #[test]
    fn the_jwk_and_its_thumbprint_are_those_of_the_rfc() {
        let jwk = serde_json::to_value(PublicJwk::of(&rfc_key().1)).unwrap();

        assert_eq!(
            jwk,
            json!({
                "kty": "OKP",
                "crv": "Ed25519",
                "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
                "kid": "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k",
                "alg": "EdDSA",
                "use": "sig",
            })
        );
    }

    #[test]
    fn a_minted_token_has_the_documented_header_and_verifies() {
        let (seed, public_key) = rfc_key();

        let token =
            mint(&seed, &public_key, &json!({ "sub": "someone", "exp": 32_503_680_000_u64 })).unwrap();

        let header = BASE64URL_NOPAD.decode(token.split('.').next().unwrap().as_bytes()).unwrap();
        assert_eq!(
            serde_json::from_slice::<Value>(&header).unwrap(),
            json!({ "alg": "EdDSA", "typ": "at+jwt", "kid": "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k" })
        );
        let verifier = DecodingKey::from_ed_der(&public_key);
        let read =
            jsonwebtoken::decode::<Value>(&token, &verifier, &Validation::new(Algorithm::EdDSA)).unwrap();
        assert_eq!(read.claims["sub"], "someone");
    }

    #[test]
    fn the_signature_is_ed25519_over_header_and_claims() {
        let (seed, public_key) = rfc_key();
        let token = mint(&seed, &public_key, &json!({})).unwrap();
        let (message, signature) = token.rsplit_once('.').unwrap();

        let signature: [u8; 64] = BASE64URL_NOPAD.decode(signature.as_bytes()).unwrap().try_into().unwrap();

        let verifier = ed25519_dalek::VerifyingKey::from_bytes(&public_key).unwrap();
        assert!(verifier.verify_strict(message.as_bytes(), &signature.into()).is_ok());
    }
}
