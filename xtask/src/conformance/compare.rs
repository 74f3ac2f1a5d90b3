//! How far two sets of numbers are apart.

/// Of reference and own logits, each `rows` rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct LogitsDistance {
    /// Squared error over squared reference, summed over everything.
    pub(super) nmse: f64,
    /// Rows whose largest logit is at the same place.
    pub(super) argmax_same: usize,
    /// Rows where it is not, though the reference's two largest differ by more than the margin.
    pub(super) argmax_lost: usize,
    pub(super) rows: usize,
}

/// Compares two equally long sets of `rows` rows.
pub(super) fn logits_distance(reference: &[f32], own: &[f32], rows: usize, margin: f32) -> LogitsDistance {
    let cols = (reference.len() / rows.max(1)).max(1);
    let pairs = reference.chunks_exact(cols).zip(own.chunks_exact(cols));
    let (mut argmax_same, mut argmax_lost) = (0, 0);
    for (reference, own) in pairs {
        let (best, lead) = best_and_lead(reference);
        if best_and_lead(own).0 == best {
            argmax_same += 1;
        } else if lead > margin {
            argmax_lost += 1;
        }
    }
    LogitsDistance { nmse: nmse(reference, own), argmax_same, argmax_lost, rows }
}

/// Sum of squared differences over sum of squared references; NaN if any number is.
pub(super) fn nmse(reference: &[f32], own: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let error: f64 = reference.iter().zip(own).map(|(&r, &o)| square(f64::from(r) - f64::from(o))).sum();
    let scale: f64 = reference.iter().map(|&r| square(f64::from(r))).sum();
    if error == 0.0 { 0.0 } else { error / scale }
}

/// The place of the largest number, the first of equals, and by how much it leads the next.
fn best_and_lead(row: &[f32]) -> (usize, f32) {
    let (mut best, mut first, mut second) = (0, f32::NEG_INFINITY, f32::NEG_INFINITY);
    for (i, &x) in row.iter().enumerate() {
        if x > first {
            (best, second, first) = (i, first, x);
        } else if x > second {
            second = x;
        }
    }
    (best, first - second)
}

/// Numbers that are not the same. Zeros of either sign are the same.
pub(super) fn differing(reference: &[f32], own: &[f32]) -> usize {
    let same = |(r, o): (&f32, &f32)| r == o || r.to_bits() == o.to_bits();
    reference.iter().zip(own).filter(|&pair| !same(pair)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nmse_is_relative() {
        let cases: [(&[f32], &[f32], f64); 5] = [
            (&[1.0, 2.0], &[1.0, 2.0], 0.0),
            (&[3.0, 4.0], &[3.0, 4.5], 0.01),
            (&[300.0, 400.0], &[300.0, 450.0], 0.01),
            (&[0.0, 0.0], &[0.0, 0.0], 0.0),
            (&[0.0], &[1.0], f64::INFINITY),
        ];
        for (reference, own, expected) in cases {
            assert!((nmse(reference, own) - expected).abs() < 1e-12 || nmse(reference, own) == expected);
        }
        assert!(nmse(&[1.0], &[f32::NAN]).is_nan());
    }

    #[test]
    fn argmax_counts_rows_that_the_reference_is_sure_of() {
        let reference = [0.0, 1.0, 0.95, 0.0, 1.0, 0.5, 1.0, 0.0, 0.0];
        let own = [0.0, 0.9, 0.95, 1.0, 0.9, 0.5, 1.0, 0.5, 0.0];
        let distance = logits_distance(&reference, &own, 3, 0.1);
        assert_eq!((distance.argmax_same, distance.argmax_lost, distance.rows), (1, 1, 3));
    }

    #[test]
    fn leads() {
        let cases: [(&[f32], usize, f32); 4] = [
            (&[1.0, 3.0, 2.0], 1, 1.0),
            (&[2.0, 2.0], 0, 0.0),
            (&[5.0], 0, f32::INFINITY),
            (&[-3.0, -1.0], 1, 2.0),
        ];
        for (row, best, lead) in cases {
            assert_eq!(best_and_lead(row), (best, lead));
        }
    }

    #[test]
    fn zeros_and_equal_nans_do_not_differ() {
        assert_eq!(differing(&[0.0, f32::NAN, 1.0], &[-0.0, f32::NAN, 1.0]), 0);
        assert_eq!(differing(&[1.0, 2.0], &[1.0, f32::from_bits(2f32.to_bits() + 1)]), 1);
    }
}
