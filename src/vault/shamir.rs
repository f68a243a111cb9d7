//! Shamir's secret sharing over GF(256), byte by byte: the only code that uses `vsss_rs`.
//!
//! Never tells a wrong secret from the right one: too few points, or one that was changed, make another secret without
//! an error. Whoever combines compares the result with a check value.
//!
//! `vsss_rs` multiplies and inverts without tables and without branches on secret values (its `gf256.rs`), and draws
//! every coefficient from all 256 values, so that fewer points than the threshold say nothing at all. What it would leave
//! behind, the coefficients of the last byte, lies in an array of ours here and is wiped.

use std::collections::BTreeMap;
use std::num::NonZeroU8;

use vsss_rs::{Gf256, IdentifierGf256, Polynomial, Share as _};
use zeroize::{Zeroize as _, Zeroizing};

use super::memory::{LockedBytes, MemoryError, SECRET_BYTES};
use super::random;

/// Most points of one secret. GF(256) would have 255; nobody hands keys to more people than this.
pub(super) const POINTS_MAX: u8 = 15;

/// As `vsss_rs` lays a coefficient out: the first one, the secret byte, is a value, the others are identifiers.
type Coefficient = (IdentifierGf256, IdentifierGf256);

/// Splits `secret` into `of` points, numbered from 1, any `threshold` of which make it again. `threshold` is at least 2
/// and at most `of`, which is at most [`POINTS_MAX`].
pub(super) fn split(secret: &LockedBytes, threshold: u8, of: u8) -> Result<Vec<LockedBytes>, MemoryError> {
    let mut points = (0..of).map(|_| LockedBytes::zeroed()).collect::<Result<Vec<_>, _>>()?;
    let threshold = usize::from(threshold);
    let mut polynomial = <[Coefficient; POINTS_MAX as usize] as Polynomial<Coefficient>>::create(threshold);
    for byte in 0..SECRET_BYTES {
        let intercept = IdentifierGf256(Gf256(secret.expose()[byte]));
        polynomial
            .fill(&intercept, random::generator(), threshold)
            .expect("a threshold of at most 15: as long as the array");
        for (number, point) in (1..).zip(&mut points) {
            let mut value = IdentifierGf256::default();
            polynomial.evaluate_in_place(&IdentifierGf256(Gf256(number)), threshold, &mut value);
            point.expose_mut()[byte] = value.0.0;
            value.0.0.zeroize();
        }
    }
    for coefficient in &mut polynomial {
        coefficient.identifier_mut().0.0.zeroize();
        coefficient.value_mut().0.0.zeroize();
    }
    Ok(points)
}

/// The secret that these points make: that which was split, if they are at least its threshold, of one split, and none
/// was changed. `None` of fewer than two points.
pub(super) fn combine(
    points: &BTreeMap<NonZeroU8, &LockedBytes>,
) -> Result<Option<LockedBytes>, MemoryError> {
    if points.len() < 2 {
        return Ok(None);
    }
    let rows = Zeroizing::new(points.iter().map(|(number, point)| row(*number, point)).collect::<Vec<_>>());
    let combined = Gf256::combine_bytes(&*rows)
        .expect("two or more rows of one length, of numbers above 0 that differ: the keys of a map");
    let combined = Zeroizing::new(combined);
    let mut secret = LockedBytes::zeroed()?;
    secret.expose_mut().copy_from_slice(&combined);
    Ok(Some(secret))
}

/// A point as `vsss_rs` takes it: its number, then its bytes. Never grows, so that no copy is left behind.
fn row(number: NonZeroU8, point: &LockedBytes) -> Vec<u8> {
    let mut row = Vec::with_capacity(1 + SECRET_BYTES);
    row.push(number.get());
    row.extend_from_slice(point.expose());
    row
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn combined(points: &[LockedBytes], chosen: impl IntoIterator<Item = usize>) -> [u8; 32] {
        let chosen = chosen.into_iter().map(|at| (NonZeroU8::new(at as u8 + 1).unwrap(), &points[at]));
        *combine(&chosen.collect()).unwrap().unwrap().expose()
    }

    /// Multiplication by the definition of the field (FIPS 197, section 4.2), bit by bit.
    fn times(mut a: u8, mut b: u8) -> u8 {
        let mut product = 0;
        while b != 0 {
            if b & 1 == 1 {
                product ^= a;
            }
            a = (a << 1) ^ if a & 0x80 != 0 { 0x1b } else { 0 };
            b >>= 1;
        }
        product
    }

    /// Every choice of `size` numbers below `of`.
    fn choices(of: u8, size: u32) -> impl Iterator<Item = Vec<usize>> {
        let chosen = move |mask: u32| (0..usize::from(of)).filter(move |at| mask >> at & 1 == 1).collect();
        (0..1_u32 << of).filter(move |mask| mask.count_ones() == size).map(chosen)
    }

    #[test]
    fn every_choice_of_enough_points_makes_the_secret_and_none_of_fewer_does() {
        let secret = LockedBytes::random().unwrap();
        for (threshold, of) in [(2, 2), (2, 3), (3, 5), (5, 5), (4, 7), (8, 9)] {
            let points = split(&secret, threshold, of).unwrap();

            assert_eq!(points.len(), usize::from(of));
            for size in 2..=u32::from(of) {
                for chosen in choices(of, size) {
                    let is_secret = combined(&points, chosen.iter().copied()) == *secret.expose();
                    assert_eq!(is_secret, size >= u32::from(threshold), "{threshold} of {of}: {chosen:?}");
                }
            }
        }
    }

    #[test]
    fn the_most_points_that_there_are_work() {
        let secret = LockedBytes::random().unwrap();
        for threshold in [2, POINTS_MAX] {
            let points = split(&secret, threshold, POINTS_MAX).unwrap();

            assert_eq!(combined(&points, 0..usize::from(POINTS_MAX)), *secret.expose());
            let last = usize::from(POINTS_MAX - threshold)..usize::from(POINTS_MAX);
            assert_eq!(combined(&points, last), *secret.expose());
        }
    }

    #[test]
    fn points_lie_on_a_line_of_the_field_that_everybody_knows() {
        let secret = LockedBytes::random().unwrap();

        let points = split(&secret, 2, 3).unwrap();

        // By two points the slope, by the slope the third: with the field's own arithmetic, none of the crate's.
        for byte in 0..SECRET_BYTES {
            let [first, second, third] = [0, 1, 2].map(|at| points[at].expose()[byte]);
            let slope = (0..=255).find(|slope| times(*slope, 1 ^ 2) == first ^ second).unwrap();
            assert_eq!(secret.expose()[byte], first ^ times(slope, 1));
            assert_eq!(third, secret.expose()[byte] ^ times(slope, 3));
        }
    }

    #[test]
    fn no_two_splits_are_alike_and_no_point_is_the_secret() {
        let secret = LockedBytes::random().unwrap();

        let (one, other) = (split(&secret, 2, 3).unwrap(), split(&secret, 2, 3).unwrap());

        for (one, other) in one.iter().zip(&other) {
            assert_ne!(one.expose(), other.expose());
            assert_ne!(one.expose(), secret.expose());
        }
    }

    #[test]
    fn one_point_makes_nothing() {
        let point = LockedBytes::random().unwrap();

        assert!(combine(&BTreeMap::new()).unwrap().is_none());
        assert!(combine(&BTreeMap::from([(NonZeroU8::MIN, &point)])).unwrap().is_none());
    }

    proptest! {
        #[test]
        fn what_was_split_is_combined(secret: [u8; 32], (of, threshold) in (2..=POINTS_MAX).prop_flat_map(|of| (Just(of), 2..=of)), first in 0..15_usize) {
            let points = split(&LockedBytes::copy_of(&secret).unwrap(), threshold, of).unwrap();

            let of = usize::from(of);
            let chosen = (0..usize::from(threshold)).map(|at| (first + at) % of);
            prop_assert_eq!(combined(&points, chosen), secret);
        }
    }
}
