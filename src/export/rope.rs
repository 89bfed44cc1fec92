//! Rotary positions: how far each pair of a head turns from one position to the next, and the tables of
//! cosines and sines that the attention operator reads.

/// The base that models use when they do not say another.
pub(in crate::export) const DEFAULT_THETA: f64 = 10_000.0;

/// How a model's positions were stretched beyond the length it was first trained on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::export) enum Scaling {
    /// Not at all.
    None,
    /// Llama 3.1: low frequencies are divided by `factor`, high ones are left, those between are mixed.
    Llama3 { factor: f64, low_freq_factor: f64, high_freq_factor: f64, original_context: f64 },
}

/// `theta^(-2i / head_dim)` for each of the `head_dim / 2` pairs, scaled.
pub(in crate::export) fn inverse_frequencies(theta: f64, head_dim: usize, scaling: Scaling) -> Vec<f32> {
    (0..head_dim / 2)
        .map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64))
        .map(|frequency| match scaling {
            Scaling::None => frequency,
            Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                let turns = original_context * frequency / std::f64::consts::TAU;
                let kept = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                kept * frequency + (1.0 - kept) * frequency / factor
            }
        } as f32)
        .collect()
}

/// Tables `[context, head_dim / 2]` of cosines and sines. Angles are products of 32-bit floats, as where the
/// models were trained.
pub(in crate::export) fn tables(inverse_frequencies: &[f32], context: usize) -> (Vec<f32>, Vec<f32>) {
    (0..context)
        .flat_map(|position| inverse_frequencies.iter().map(move |f| position as f32 * f))
        .map(|angle| (angle.cos(), angle.sin()))
        .unzip()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequencies_fall_from_one_by_a_constant_factor() {
        let plain = inverse_frequencies(10_000.0, 8, Scaling::None);
        assert_eq!(plain, [1.0, 0.1, 0.01, 0.001]);
    }

    #[test]
    fn llama_3_scaling_keeps_the_high_divides_the_low_and_mixes_between() {
        let scaling =
            Scaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192.0 };
        let plain = inverse_frequencies(500_000.0, 64, Scaling::None);
        let scaled = inverse_frequencies(500_000.0, 64, scaling);
        assert_eq!(plain[0], scaled[0]);
        assert_eq!(plain[31] / 8.0, scaled[31]);
        // 8192 positions make 2.5 turns half-way between 1 and 4.
        let between = scaled.iter().zip(&plain).filter(|(s, p)| **s < **p && **s > **p / 8.0).count();
        assert!((1..8).contains(&between), "{between} mixed");
    }

    #[test]
    fn tables_start_with_no_turn() {
        let (cos, sin) = tables(&[1.0, 0.5], 3);
        assert_eq!((&cos[..2], &sin[..2]), (&[1.0, 1.0][..], &[0.0, 0.0][..]));
        assert!((cos[4] - 2f32.cos()).abs() < 1e-7 && (sin[5] - 1f32.sin()).abs() < 1e-7);
    }
}
