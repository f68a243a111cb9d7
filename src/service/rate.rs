//! Limits per address for what anybody may try: claims, passphrases, shares, reports of leaked tokens.
//!
//! Never used for checking tokens: they cannot be guessed, and one expired CI job must not lock out its
//! neighbours.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};

use super::{Error, Result};
use crate::time::Timestamp;

/// So many tries at once, then one in each interval, for each network.
pub(super) struct RateLimiter {
    burst: i64,
    interval_millis: i64,
    /// When the bucket of a network is full again.
    full_at: Mutex<HashMap<Network, Timestamp>>,
}

/// Who shares a bucket.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Network {
    /// An IPv4 address, or the /64 of an IPv6 address: what one customer has.
    Of(IpAddr),
    /// Callers without an address.
    Unknown,
    /// Everybody for whom there was no room.
    Crowd,
}

impl RateLimiter {
    /// `tries` at once, then as many in each minute.
    pub fn per_minute(tries: u16) -> Self {
        let tries = i64::from(tries.max(1));
        Self { burst: tries, interval_millis: 60_000 / tries, full_at: Mutex::default() }
    }

    /// Counts a try, or says how long to wait.
    pub fn take(&self, address: Option<IpAddr>, now: Timestamp) -> Result<()> {
        let mut full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        let mut network = address.map_or(Network::Unknown, network);
        if full_at.len() >= NETWORKS_MAX && !full_at.contains_key(&network) {
            full_at.retain(|_, time| *time > now);
            if full_at.len() >= NETWORKS_MAX {
                network = Network::Crowd;
            }
        }
        let empty = now.plus_millis(self.burst * self.interval_millis);
        // Later than `empty` is only what a clock wrote that was set back since.
        let known = full_at.get(&network).copied().filter(|time| *time <= empty);
        let next = known.unwrap_or(now).max(now).plus_millis(self.interval_millis);
        if next > empty {
            let wait_seconds = (next.0 - empty.0).div_euclid(1000) + 1;
            let retry_after_seconds = u64::try_from(wait_seconds).unwrap_or(1);
            return Err(Error::TooMany { retry_after_seconds });
        }
        full_at.insert(network, next);
        Ok(())
    }
}

fn network(address: IpAddr) -> Network {
    Network::Of(match address.to_canonical() {
        IpAddr::V6(address) => {
            let prefix = address.to_bits() & !u128::from(u64::MAX);
            Ipv6Addr::from_bits(prefix).into()
        }
        address => address,
    })
}

/// Networks remembered at once, some 64 bytes each; those beyond share one bucket.
const NETWORKS_MAX: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: Timestamp = Timestamp(1_795_353_000_000);

    fn tries(limiter: &RateLimiter, address: &str, now: Timestamp) -> usize {
        (0..100).take_while(|_| limiter.take(address.parse().ok(), now).is_ok()).count()
    }

    #[test]
    fn ten_tries_and_then_one_in_six_seconds() {
        let limiter = RateLimiter::per_minute(10);

        assert_eq!(tries(&limiter, "192.0.2.1", NOON), 10);
        assert_eq!(tries(&limiter, "192.0.2.1", NOON.plus_millis(5_999)), 0);
        assert_eq!(tries(&limiter, "192.0.2.1", NOON.plus_seconds(6)), 1);
        assert_eq!(tries(&limiter, "192.0.2.1", NOON.plus_seconds(60)), 9);
        assert_eq!(tries(&limiter, "192.0.2.1", NOON.plus_seconds(600)), 10);
    }

    #[test]
    fn the_answer_says_how_long_to_wait() {
        let limiter = RateLimiter::per_minute(1);
        limiter.take(None, NOON).unwrap();

        let refused = limiter.take(None, NOON.plus_seconds(2));

        assert!(matches!(refused, Err(Error::TooMany { retry_after_seconds: 59 })), "{refused:?}");
        assert!(limiter.take(None, NOON.plus_seconds(2 + 59)).is_ok());
    }

    #[test]
    fn neighbours_have_their_own_tries_and_one_customer_has_one_bucket() {
        let limiter = RateLimiter::per_minute(1);

        for (address, allowed) in [
            ("192.0.2.1", 1),
            ("192.0.2.2", 1),
            ("::ffff:192.0.2.1", 0),
            ("2001:db8::1", 1),
            ("2001:db8::2", 0),
            ("2001:db8:0:1::1", 1),
            ("unknown", 1),
        ] {
            assert_eq!(tries(&limiter, address, NOON), allowed, "{address}");
        }
    }

    #[test]
    fn memory_is_bounded_and_a_crowd_shares_one_bucket() {
        let limiter = RateLimiter::per_minute(1);
        for number in 0..2 * NETWORKS_MAX as u32 {
            let _ = limiter.take(Some(IpAddr::V4(number.into())), NOON);
        }

        assert_eq!(limiter.full_at.lock().unwrap().len(), NETWORKS_MAX + 1);
        assert_eq!(tries(&limiter, "203.0.113.1", NOON), 0);
        assert_eq!(tries(&limiter, "203.0.113.1", NOON.plus_seconds(60)), 1);
    }

    #[test]
    fn a_clock_that_is_set_back_locks_nobody_out() {
        let limiter = RateLimiter::per_minute(1);
        limiter.take(None, NOON).unwrap();

        assert!(limiter.take(None, NOON.plus_seconds(-3600)).is_ok());
    }
}
