//! Who asks, what for, and whether that is allowed.
//!
//! Never knows about rows: a caller is made only after the token's row was found live.

use super::name::{CacheName, ContributorId, TokenId};
use super::scope::Scopes;
use crate::time::Timestamp;

/// Who makes a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// Nobody showed a credential. A *bad* credential does not make this; it is refused before.
    Anonymous,
    /// The holder of a token that was verified and whose row is live.
    Token(TokenCaller),
    /// The operator, on the server's host, with the data folder at hand: may do everything.
    Host,
}

/// A verified, live token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenCaller {
    pub token: TokenId,
    pub contributor: ContributorId,
    pub scopes: Scopes,
    pub expires_at: Timestamp,
}

/// What a caller wants to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Anything about caches, contributors, keys, policy, the vault, or other people's tokens.
    Administer,
    /// Read a cache.
    Pull(CacheName),
    /// Upload to a cache and publish there.
    Push(CacheName),
    /// Withdraw paths of a cache.
    Delete(CacheName),
}

/// Why a call is not allowed. Says nothing about whether the cache exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error("this needs a token")]
    Unauthenticated,
    #[error("this token does not allow that")]
    Forbidden,
}

/// Why a token may not be issued by this caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IssueDenied {
    #[error(transparent)]
    Denied(#[from] Denied),
    #[error("only an admin token issues tokens for another contributor")]
    OtherContributor,
    #[error("the new token would allow more than the one that issues it")]
    MoreScopes,
    #[error("the new token would live longer than the one that issues it")]
    LivesLonger,
}

impl Caller {
    /// Refuses unless this caller may do `action`.
    pub fn require(&self, action: &Action) -> Result<(), Denied> {
        match self {
            Self::Host => Ok(()),
            Self::Token(token) if token.scopes.allows(action) => Ok(()),
            Self::Token(_) => Err(Denied::Forbidden),
            Self::Anonymous => Err(Denied::Unauthenticated),
        }
    }

    /// The token that was shown, if any.
    pub fn token(&self) -> Option<&TokenCaller> {
        match self {
            Self::Token(token) => Some(token),
            Self::Anonymous | Self::Host => None,
        }
    }

    /// Refuses unless this caller may issue a token for `contributor` with `scopes` that ends at `expires_at`: admins
    /// for anyone, others only for themselves, a subset of their scopes, no longer than their own.
    pub fn require_issue(
        &self,
        contributor: ContributorId,
        scopes: &Scopes,
        expires_at: Timestamp,
    ) -> Result<(), IssueDenied> {
        if self.require(&Action::Administer).is_ok() {
            return Ok(());
        }
        let own = self.token().ok_or(Denied::Unauthenticated)?;
        if own.contributor != contributor {
            return Err(IssueDenied::OtherContributor);
        }
        if !own.scopes.contains(scopes) {
            return Err(IssueDenied::MoreScopes);
        }
        if expires_at > own.expires_at {
            return Err(IssueDenied::LivesLonger);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: Timestamp = Timestamp(1_795_353_000_000);

    fn contributor(byte: u8) -> ContributorId {
        ContributorId::new(NOON, [byte; 10])
    }

    fn caller(scopes: &str) -> Caller {
        Caller::Token(TokenCaller {
            token: TokenId::new(NOON, [7; 10]),
            contributor: contributor(1),
            scopes: scopes.parse().unwrap(),
            expires_at: NOON,
        })
    }

    fn every_action() -> Vec<Action> {
        let cache: CacheName = "main".parse().unwrap();
        vec![
            Action::Administer,
            Action::Pull(cache.clone()),
            Action::Push(cache.clone()),
            Action::Delete(cache),
        ]
    }

    #[test]
    fn nobody_may_do_anything_and_is_told_to_log_in() {
        for action in every_action() {
            assert_eq!(Caller::Anonymous.require(&action), Err(Denied::Unauthenticated), "{action:?}");
        }
    }

    #[test]
    fn the_host_and_an_admin_may_do_everything() {
        for action in every_action() {
            assert_eq!(Caller::Host.require(&action), Ok(()), "{action:?}");
            assert_eq!(caller("admin").require(&action), Ok(()), "{action:?}");
        }
    }

    #[test]
    fn a_token_without_the_right_is_forbidden() {
        for (scopes, allowed) in
            [("push:main", "011"), ("pull:main", "010"), ("delete:main", "0001"), ("push:other", "")]
        {
            for (index, action) in every_action().iter().enumerate() {
                let expected =
                    if allowed.chars().nth(index) == Some('1') { Ok(()) } else { Err(Denied::Forbidden) };
                assert_eq!(caller(scopes).require(action), expected, "{scopes} {action:?}");
            }
        }
    }

    #[test]
    fn tokens_are_issued_within_the_bounds_of_the_issuer() {
        let push = "push:main".parse().unwrap();
        let admin = "admin".parse().unwrap();
        let later = NOON.plus_millis(1);
        let table = [
            (caller("push:main*"), 1, &push, NOON, Ok(())),
            (caller("admin"), 2, &admin, later, Ok(())),
            (Caller::Host, 2, &admin, later, Ok(())),
            (Caller::Anonymous, 1, &push, NOON, Err(IssueDenied::Denied(Denied::Unauthenticated))),
            (caller("push:main"), 2, &push, NOON, Err(IssueDenied::OtherContributor)),
            (caller("push:main"), 1, &admin, NOON, Err(IssueDenied::MoreScopes)),
            (caller("pull:main"), 1, &push, NOON, Err(IssueDenied::MoreScopes)),
            (caller("push:main"), 1, &push, later, Err(IssueDenied::LivesLonger)),
        ];
        for (issuer, subject, scopes, expires_at, expected) in table {
            let found = issuer.require_issue(contributor(subject), scopes, expires_at);
            assert_eq!(found, expected, "{issuer:?} {scopes}");
        }
    }
}
