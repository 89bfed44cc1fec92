//! Logistic regression for a few columns: the fit behind a calibration.
//!
//! Minimises `sum_i log(1 + exp(-s_i z_i)) + ridge / 2 * |w|^2` with `z = b + w . x` and `s = +1` for right, -1 for
//! wrong; the intercept is not penalised. Newton's method (iteratively reweighted least squares: Hastie, Tibshirani &
//! Friedman 2009, section 4.4.1) with halved steps, so that the loss never rises; one thread, one order of sums: the
//! same rows give the same bytes.

/// A fitted model.
#[derive(Debug, Clone, PartialEq)]
pub struct Fit {
    /// Log-odds where all columns are 0.
    pub intercept: f64,
    /// Log-odds a unit of each column.
    pub weights: Vec<f64>,
    /// Mean log loss on the rows, in nats, without the penalty.
    pub log_loss: f64,
}

/// Most Newton steps; ten are usual.
const STEPS: usize = 100;

/// Fit `rows` of equally many columns to `right`. `ridge` above 0 keeps the weights finite when a column parts right
/// from wrong without a flaw, and unique when two columns say the same. `None` when there are no rows, rows
/// of different lengths, or only one outcome.
pub fn fit(rows: &[Vec<f64>], right: &[bool], ridge: f64) -> Option<Fit> {
    let columns = rows.first()?.len();
    let even = rows.len() == right.len() && rows.iter().all(|row| row.len() == columns);
    if !even || right.iter().all(|r| *r) || !right.iter().any(|r| *r) {
        return None;
    }
    // The intercept is the first weight, of a column of ones.
    let rows: Vec<Vec<f64>> =
        rows.iter().map(|row| std::iter::once(1.0).chain(row.iter().copied()).collect()).collect();
    let mut weights = vec![0.0; columns + 1];
    let mut loss = penalised(&rows, right, &weights, ridge);
    for _ in 0..STEPS {
        let step = newton_step(&rows, right, &weights, ridge)?;
        let mut share = 1.0;
        let (next, next_loss) = loop {
            let next: Vec<f64> = weights.iter().zip(&step).map(|(w, s)| w - share * s).collect();
            let next_loss = penalised(&rows, right, &next, ridge);
            if next_loss <= loss || share < 1e-9 {
                break (next, next_loss);
            }
            share /= 2.0;
        };
        // No lower: the last bits only go round in circles.
        if next_loss >= loss {
            break;
        }
        (weights, loss) = (next, next_loss);
    }
    let log_loss = penalised(&rows, right, &weights, 0.0) / rows.len() as f64;
    let (intercept, weights) = weights.split_first()?;
    Some(Fit { intercept: *intercept, weights: weights.to_vec(), log_loss })
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// log(1 + exp(x)) without overflow.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

fn penalised(rows: &[Vec<f64>], right: &[bool], weights: &[f64], ridge: f64) -> f64 {
    let loss = |(row, right): (&Vec<f64>, &bool)| {
        let z = dot(row, weights);
        softplus(if *right { -z } else { z })
    };
    let penalty: f64 = weights.iter().skip(1).map(|w| w * w).sum();
    rows.iter().zip(right).map(loss).sum::<f64>() + ridge / 2.0 * penalty
}

/// `H^-1 g`: what to take off the weights.
fn newton_step(rows: &[Vec<f64>], right: &[bool], weights: &[f64], ridge: f64) -> Option<Vec<f64>> {
    let n = weights.len();
    let mut gradient = vec![0.0; n];
    let mut hessian = vec![vec![0.0; n]; n];
    for (row, right) in rows.iter().zip(right) {
        let p = 1.0 / (1.0 + (-dot(row, weights)).exp());
        let error = p - f64::from(u8::from(*right));
        for (i, x) in row.iter().enumerate() {
            gradient[i] += error * x;
            for (j, y) in row.iter().enumerate().take(i + 1) {
                hessian[i][j] += p * (1.0 - p) * x * y;
            }
        }
    }
    for i in 0..n {
        let own = if i == 0 { 0.0 } else { ridge };
        gradient[i] += own * weights[i];
        // A hair keeps the intercept's curvature above zero where every p is 0 or 1.
        hessian[i][i] += own + 1e-12;
    }
    solve(hessian, gradient)
}

/// Solve `a x = b` for a symmetric positive definite `a`, of which the lower triangle is given, by Cholesky's
/// factorisation. `None` when it is not.
fn solve(mut a: Vec<Vec<f64>>, mut b: Vec<f64>) -> Option<Vec<f64>> {
    let n = b.len();
    for i in 0..n {
        for j in 0..=i {
            let sum = a[i][j] - (0..j).map(|k| a[i][k] * a[j][k]).sum::<f64>();
            a[i][j] = if i == j { Some(sum.sqrt()).filter(|root| *root > 0.0)? } else { sum / a[j][j] };
        }
    }
    for i in 0..n {
        b[i] = (b[i] - (0..i).map(|k| a[i][k] * b[k]).sum::<f64>()) / a[i][i];
    }
    for i in (0..n).rev() {
        b[i] = (b[i] - (i + 1..n).map(|k| a[k][i] * b[k]).sum::<f64>()) / a[i][i];
    }
    b.iter().all(|x| x.is_finite()).then_some(b)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_weights_equal_those_of_gradient_descent() {
        // 200,000 steps of 0.05 down the gradient of the same loss, in Python's floats.
        let rows =
            [[0.5, -1.2], [1.5, 0.3], [-0.7, 0.8], [2.1, -0.4], [-1.1, -0.9], [0.2, 1.7], [-0.3, 0.1], [1.0, 1.0]];
        let right = [true, true, false, true, false, false, true, false];
        let fit = fit(&rows.map(Vec::from), &right, 1.0).unwrap();
        let expected =
            [-0.155_622_241_796_636_4, 0.793_106_954_092_233_6, -0.786_530_077_684_384_7, 0.422_315_866_941_214_2];
        for (ours, theirs) in [fit.intercept, fit.weights[0], fit.weights[1], fit.log_loss].into_iter().zip(expected) {
            assert!((ours - theirs).abs() < 1e-9, "{ours} {theirs}");
        }
    }

    #[test]
    fn without_columns_it_is_the_share() {
        let fit = fit(&[vec![], vec![], vec![], vec![]], &[true, false, true, true], 1.0).unwrap();
        assert!((fit.intercept - 3f64.ln()).abs() < 1e-9);
    }

    #[test]
    fn one_outcome_or_uneven_rows_are_refused() {
        assert_eq!(fit(&[vec![1.0], vec![2.0]], &[true, true], 1.0), None);
        assert_eq!(fit(&[], &[], 1.0), None);
        assert_eq!(fit(&[vec![1.0], vec![]], &[true, false], 1.0), None);
    }

    #[test]
    fn a_column_that_parts_them_without_a_flaw_keeps_a_finite_weight() {
        let rows: Vec<Vec<f64>> = (0..200).map(|i| vec![f64::from(i) - 99.5]).collect();
        let right: Vec<bool> = (0..200).map(|i| i >= 100).collect();
        let fit = fit(&rows, &right, 1.0).unwrap();
        assert!(fit.weights[0] > 0.1 && fit.weights[0] < 10.0, "{fit:?}");
    }

    fn rows() -> impl Strategy<Value = (Vec<Vec<f64>>, Vec<bool>)> {
        let row = (prop::collection::vec(-3.0f64..3.0, 3), any::<bool>());
        prop::collection::vec(row, 4..60).prop_map(|all| all.into_iter().unzip())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        #[test]
        fn no_step_in_any_direction_is_better((rows, right) in rows(), ridge in 0.01f64..10.0) {
            let Some(fit) = fit(&rows, &right, ridge) else { return Ok(()) };
            let with_one: Vec<Vec<f64>> = rows.iter().map(|r| [&[1.0], r.as_slice()].concat()).collect();
            let weights = [&[fit.intercept], fit.weights.as_slice()].concat();
            let best = penalised(&with_one, &right, &weights, ridge);
            for i in 0..weights.len() {
                for by in [1e-3, -1e-3] {
                    let mut moved = weights.clone();
                    moved[i] += by;
                    prop_assert!(penalised(&with_one, &right, &moved, ridge) >= best - 1e-9);
                }
            }
            // The intercept is free, so the mean probability is the share that is right.
            let mean = with_one.iter().map(|r| 1.0 / (1.0 + (-dot(r, &weights)).exp())).sum::<f64>() / rows.len() as f64;
            let share = right.iter().filter(|r| **r).count() as f64 / right.len() as f64;
            prop_assert!((mean - share).abs() < 1e-5, "{} {}", mean, share);
        }

        #[test]
        fn exchanging_right_and_wrong_changes_the_sign((rows, right) in rows()) {
            let wrong: Vec<bool> = right.iter().map(|r| !r).collect();
            if let (Some(a), Some(b)) = (fit(&rows, &right, 1.0), fit(&rows, &wrong, 1.0)) {
                for (x, y) in a.weights.iter().zip(&b.weights) {
                    prop_assert!((x + y).abs() < 1e-5, "{:?} {:?}", a, b);
                }
            }
        }
    }
}
