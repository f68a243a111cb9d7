//! Asking again: which failures pass by themselves, and how long to wait.
//!
//! Never waits less than was asked for by `Retry-After`: where that is more than a push waits, it ends at once, and says
//! so. Full jitter, so that many clients that lost the same server do not come back at the same moment.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::Duration;

use super::super::error::Error;

/// How often a call is tried.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    attempts_max: u32,
}

impl Patience {
    /// Of the first call of a push: whoever mistyped an address learns it within seconds.
    pub const SHORT: Self = Self { attempts_max: 3 };

    /// Once the server has answered: long enough for it to be restarted, about a minute in all.
    pub const LONG: Self = Self { attempts_max: 9 };

    /// How long to wait after `attempts` vain ones, or `None` when it is enough, or when more is asked for than
    /// [`ASKED_SECONDS_MAX`]. `fraction` is drawn from 0 to 1.
    fn wait(self, attempts: u32, asked_seconds: Option<u64>, fraction: f64) -> Option<Duration> {
        if attempts >= self.attempts_max {
            return None;
        }
        let asked_seconds = asked_seconds.unwrap_or(0);
        if asked_seconds > ASKED_SECONDS_MAX {
            return None;
        }
        let ceiling = BASE.saturating_mul(1 << (attempts - 1).min(16)).min(CEILING);
        Some(Duration::from_secs(asked_seconds) + ceiling.mul_f64(fraction))
    }
}

/// What a call's caller learns while it is tried again.
#[derive(Debug, Clone)]
pub struct Retry {
    pub reason: String,
    pub wait: Duration,
}

/// Makes `call` until it succeeds, fails in a way that does not pass, or patience ends: by the number of attempts, or
/// by [`ASKED_SECONDS_MAX`] and [`ASKED_SECONDS_SUM_MAX`]. Gives the number of attempts with the answer: after more than
/// one, what is found done may have been done by an earlier one.
pub async fn persist<T, F: Future<Output = Result<T, Error>>>(
    patience: Patience,
    notice: impl Fn(Retry),
    call: impl Fn() -> F,
) -> Result<(T, u32), Error> {
    let mut waits = Waits::new(patience);
    loop {
        let error = match call().await {
            Ok(answer) => return Ok((answer, waits.attempts + 1)),
            Err(error) => error,
        };
        let wait = waits.next(error.wait_seconds()).filter(|_| error.is_passing());
        let Some(wait) = wait else { return Err(error) };
        notice(Retry { reason: error.to_string(), wait });
        tokio::time::sleep(wait).await;
    }
}

/// The waits between attempts at one thing, until patience ends.
pub struct Waits {
    patience: Patience,
    attempts: u32,
    asked_seconds_sum: u64,
}

impl Waits {
    /// Before the first attempt.
    pub fn new(patience: Patience) -> Self {
        Self { patience, attempts: 0, asked_seconds_sum: 0 }
    }

    /// How long to wait after one more vain attempt, whose answer asked for so many seconds.
    pub fn next(&mut self, asked_seconds: Option<u64>) -> Option<Duration> {
        self.attempts += 1;
        self.asked_seconds_sum = self.asked_seconds_sum.saturating_add(asked_seconds.unwrap_or(0));
        let wait = self.patience.wait(self.attempts, asked_seconds, random_fraction());
        wait.filter(|_| self.asked_seconds_sum <= ASKED_SECONDS_SUM_MAX)
    }
}

/// From 0 to 1. The keys of the standard library's hashers are random, which is random enough for a waiting time.
fn random_fraction() -> f64 {
    RandomState::new().build_hasher().finish() as f64 / u64::MAX as f64
}

/// The most that the first wait takes; each further one may take twice as long.
const BASE: Duration = Duration::from_millis(500);

/// The most that any wait takes beyond what the server asked for.
const CEILING: Duration = Duration::from_secs(20);

/// The longest single wait that may be asked for: the longest that narvault's own answers ask for, while a database
/// that was rolled back only reads.
pub const ASKED_SECONDS_MAX: u64 = 300;

/// The longest that one call waits because it was asked to, in all: a job's time is not the server's.
const ASKED_SECONDS_SUM_MAX: u64 = 600;

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::api::Problem;

    fn problem(status: u16, slug: &str) -> Error {
        let kind = format!("urn:narvault:problem:{slug}");
        let (title, detail, request_id) = (String::new(), String::new(), String::new());
        Error::Problem(Box::new(Problem { kind, title, status, detail, request_id }))
    }

    #[test]
    fn waits_grow_up_to_a_ceiling_and_then_end() {
        let longest: Vec<u128> = (1..)
            .map_while(|attempts| Patience::LONG.wait(attempts, None, 1.0))
            .map(|wait| wait.as_millis())
            .collect();

        assert_eq!(longest, [500, 1000, 2000, 4000, 8000, 16_000, 20_000, 20_000]);
        assert_eq!(Patience::LONG.wait(5, None, 0.0), Some(Duration::ZERO));
        assert_eq!(Patience::SHORT.wait(3, None, 1.0), None);
    }

    #[test]
    fn what_was_asked_for_is_waited_at_least_or_not_at_all() {
        for asked in [0, 1, 10, 60, 299, ASKED_SECONDS_MAX] {
            assert_eq!(Patience::LONG.wait(1, Some(asked), 0.0), Some(Duration::from_secs(asked)));
            assert!(Patience::LONG.wait(1, Some(asked), 1.0) > Some(Duration::from_secs(asked)));
        }
        for asked in [ASKED_SECONDS_MAX + 1, 86_400, u64::MAX] {
            assert_eq!(Patience::LONG.wait(1, Some(asked), 0.5), None, "{asked}");
        }
    }

    fn asked_to_wait(seconds: u64) -> Error {
        Error::AskedToWait { seconds, error: Box::new(problem(503, "read-only")) }
    }

    /// Calls somebody who asks for such waits, and then succeeds: the number of attempts, or of vain calls, and how
    /// long all took.
    async fn patient(asked: &[u64]) -> (Result<u32, usize>, Duration) {
        let (calls, begun) = (Cell::new(0), tokio::time::Instant::now());
        let call = || {
            let answer = asked.get(calls.get()).map_or(Ok(()), |&seconds| Err(asked_to_wait(seconds)));
            calls.set(calls.get() + 1);
            std::future::ready(answer)
        };

        let result = persist(Patience::LONG, |_| (), call).await;

        (result.map(|((), attempts)| attempts).map_err(|_| calls.get()), begun.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_is_made_again_no_sooner_than_it_was_asked_to() {
        for (asked, expected) in [(&[7][..], 7), (&[300], 300), (&[300, 300], 600), (&[10, 20, 30], 60)] {
            let (result, elapsed) = patient(asked).await;

            assert_eq!(result, Ok(asked.len() as u32 + 1), "{asked:?}");
            assert!(elapsed >= Duration::from_secs(expected), "{asked:?}: {elapsed:?}");
            assert!(elapsed < Duration::from_secs(expected + 10), "{asked:?}: {elapsed:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_asked_to_wait_for_too_long_gives_up_at_once() {
        for (asked, calls, elapsed_max) in
            [(&[301][..], 1, 0), (&[u64::MAX], 1, 0), (&[1, 301], 2, 2), (&[300, 300, 1], 3, 602)]
        {
            let (result, elapsed) = patient(asked).await;

            assert_eq!(result, Err(calls), "{asked:?}");
            assert!(elapsed <= Duration::from_secs(elapsed_max), "{asked:?}: {elapsed:?}");
        }
    }

    #[test]
    fn fractions_are_fractions_and_differ() {
        let drawn: Vec<f64> = (0..100).map(|_| random_fraction()).collect();

        assert!(drawn.iter().all(|fraction| (0.0..=1.0).contains(fraction)));
        assert!(drawn.iter().any(|fraction| *fraction < 0.5) && drawn.iter().any(|fraction| *fraction > 0.5));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_is_tried_again_only_while_it_may_pass() {
        for (status, slug, expected) in [
            (503, "busy", 9),
            (500, "internal", 9),
            (429, "too-many-tries", 9),
            (400, "aborted", 9),
            (503, "sealed", 1),
            (423, "sealed", 1),
            (401, "unauthenticated", 1),
            (403, "forbidden", 1),
            (409, "conflicting-claim", 1),
            (413, "too-large", 1),
            (422, "rejected", 1),
        ] {
            let (calls, notices) = (Cell::new(0), Cell::new(0));
            let refused = || {
                calls.set(calls.get() + 1);
                std::future::ready(Err::<(), _>(problem(status, slug)))
            };

            let result = persist(Patience::LONG, |_| notices.set(notices.get() + 1), refused).await;

            assert_eq!(result.unwrap_err().status(), Some(status));
            assert_eq!((calls.get(), notices.get()), (expected, expected - 1), "{status} {slug}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_success_says_which_attempt_it_was() {
        let calls = Cell::new(0);
        let call = || {
            calls.set(calls.get() + 1);
            std::future::ready(if calls.get() < 3 { Err(problem(502, "")) } else { Ok("done") })
        };

        assert_eq!(persist(Patience::LONG, |_| (), call).await.unwrap(), ("done", 3));
    }
}
