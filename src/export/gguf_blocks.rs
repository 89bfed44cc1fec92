//! ggml's packed number formats, turned into 32-bit floats.
//!
//! A packed tensor is a row of blocks; a block holds 32 (or, for the K formats, 256) numbers and the scales
//! that give them their size. Layouts as in ggml's `ggml-common.h`. Reading only; packing is not done here.

use half::{bf16, f16};

/// The formats that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockFormat {
    /// 32-bit floats.
    F32,
    /// 16-bit floats of IEEE 754.
    F16,
    /// 32-bit floats without their lower half.
    Bf16,
    /// 4 bits and a scale: `d (q - 8)`.
    Q4_0,
    /// 4 bits, a scale and a minimum: `d q + m`.
    Q4_1,
    /// 5 bits and a scale: `d (q - 16)`. Files of the 4-bit K kinds fall back on it for rows that are not
    /// a multiple of 256.
    Q5_0,
    /// 8 bits and a scale: `d q`.
    Q8_0,
    /// 4 bits in super-blocks of 256, with a 6-bit scale and minimum for each 32.
    Q4K,
    /// 6 bits in super-blocks of 256, with an 8-bit scale for each 16.
    Q6K,
}

impl BlockFormat {
    /// All of them, for messages.
    pub const NAMES: &str = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q8_0, Q4_K, Q6_K";

    /// The format of this number in ggml's `ggml_type`.
    pub fn from_ggml(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            8 => Self::Q8_0,
            12 => Self::Q4K,
            14 => Self::Q6K,
            30 => Self::Bf16,
            _ => return None,
        })
    }

    /// Numbers in a block, and bytes it takes.
    fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q4_0 => (32, 2 + 16),
            Self::Q4_1 => (32, 2 + 2 + 16),
            Self::Q5_0 => (32, 2 + 4 + 16),
            Self::Q8_0 => (32, 2 + 32),
            Self::Q4K => (256, 2 + 2 + 12 + 128),
            Self::Q6K => (256, 128 + 64 + 16 + 2),
        }
    }

    /// Bytes of `elements` packed numbers; `None` when they do not fill whole blocks.
    pub fn bytes_of(self, elements: usize) -> Option<usize> {
        let (numbers, bytes) = self.block();
        if elements.is_multiple_of(numbers) { (elements / numbers).checked_mul(bytes) } else { None }
    }

    /// The numbers in `bytes`, in order. Bytes after the last whole block are ignored.
    pub fn dequantise(self, bytes: &[u8]) -> Vec<f32> {
        let (numbers, size) = self.block();
        let mut out = Vec::with_capacity(bytes.len() / size * numbers);
        for block in bytes.chunks_exact(size) {
            match self {
                Self::F32 => out.push(f32::from_le_bytes([block[0], block[1], block[2], block[3]])),
                Self::F16 => out.push(half_at(block, 0)),
                Self::Bf16 => out.push(bf16::from_le_bytes([block[0], block[1]]).to_f32()),
                Self::Q4_0 => {
                    let d = half_at(block, 0);
                    out.extend(nibbles(&block[2..]).map(|q| d * (f32::from(q) - 8.0)));
                }
                Self::Q4_1 => {
                    let (d, m) = (half_at(block, 0), half_at(block, 2));
                    out.extend(nibbles(&block[4..]).map(|q| d * f32::from(q) + m));
                }
                Self::Q5_0 => {
                    let d = half_at(block, 0);
                    let fifth = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
                    out.extend(nibbles(&block[6..]).enumerate().map(|(j, q)| {
                        let q = q | (((fifth >> j) & 1) as u8) << 4;
                        d * (f32::from(q) - 16.0)
                    }));
                }
                Self::Q8_0 => {
                    let d = half_at(block, 0);
                    out.extend(block[2..].iter().map(|&q| d * f32::from(q as i8)));
                }
                Self::Q4K => q4_k(block, &mut out),
                Self::Q6K => q6_k(block, &mut out),
            }
        }
        out
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// 4-bit numbers: first the lower half of every byte, then the upper halves.
fn nibbles(bytes: &[u8]) -> impl Iterator<Item = u8> {
    bytes.iter().map(|b| b & 15).chain(bytes.iter().map(|b| b >> 4))
}

/// `d`, `dmin`, twelve bytes of 6-bit scales and minima for the eight runs of 32, then the 4-bit numbers:
/// each 32 bytes hold one run in their lower and the next in their upper halves.
fn q4_k(block: &[u8], out: &mut Vec<f32>) {
    let (d, d_min) = (half_at(block, 0), half_at(block, 2));
    let packed = &block[4..16];
    for (pair, bytes) in block[16..].chunks_exact(32).enumerate() {
        for (half, shift) in [(0, 0), (1, 4)] {
            let run = 2 * pair + half;
            // The first four scales and minima lie in six bits of a byte each; of the other four, the low
            // four bits share a byte, and the high two are in the spare bits of the first.
            let (scale, min) = if run < 4 {
                (packed[run] & 63, packed[run + 4] & 63)
            } else {
                (packed[run + 4] & 15 | (packed[run - 4] >> 6) << 4, packed[run + 4] >> 4 | (packed[run] >> 6) << 4)
            };
            let (scale, min) = (d * f32::from(scale), d_min * f32::from(min));
            out.extend(bytes.iter().map(|b| scale * f32::from(b >> shift & 15) - min));
        }
    }
}

/// Lower four bits, upper two bits, sixteen scales of 8 bits, `d`; twice 128 numbers, each four rows of 32
/// that share bytes.
fn q6_k(block: &[u8], out: &mut Vec<f32>) {
    let d = half_at(block, 208);
    for half in 0..2 {
        let low = &block[64 * half..64 * half + 64];
        let high = &block[128 + 32 * half..128 + 32 * half + 32];
        let scales = &block[192 + 8 * half..192 + 8 * half + 8];
        for row in 0..4 {
            for j in 0..32 {
                let four = low[32 * (row % 2) + j] >> (4 * (row / 2)) & 15;
                let two = high[j] >> (2 * row) & 3;
                let scale = scales[2 * row + j / 16] as i8;
                out.push(d * f32::from(scale) * (f32::from(four | two << 4) - 32.0));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::{GgmlDType, QStorage, QTensor};
    use candle_core::{Device, Tensor};

    use super::*;

    fn half(x: f32) -> [u8; 2] {
        f16::from_f32(x).to_le_bytes()
    }

    #[test]
    fn plain_floats() {
        assert_eq!(BlockFormat::F32.dequantise(&1.5f32.to_le_bytes()), [1.5]);
        assert_eq!(BlockFormat::F16.dequantise(&half(-0.25)), [-0.25]);
        assert_eq!(BlockFormat::Bf16.dequantise(&[0x80, 0x3f]), [1.0]);
    }

    #[test]
    fn q4_blocks_by_hand() {
        // The low halves count 0..16, the high halves are all 15.
        let numbers: Vec<u8> = (0..16).map(|q| q | 0xf0).collect();
        let q4_0 = BlockFormat::Q4_0.dequantise(&[&half(0.5)[..], &numbers].concat());
        assert_eq!(&q4_0[..3], [-4.0, -3.5, -3.0]);
        assert_eq!(&q4_0[15..], [3.5; 17]);
        let q4_1 = BlockFormat::Q4_1.dequantise(&[&half(0.5)[..], &half(-1.0), &numbers].concat());
        assert_eq!(&q4_1[..3], [-1.0, -0.5, 0.0]);
        assert_eq!(&q4_1[15..], [6.5; 17]);
    }

    #[test]
    fn q5_and_q8_blocks_by_hand() {
        // Number 1 and number 16 have their fifth bit set.
        let fifth = (1u32 << 1 | 1 << 16).to_le_bytes();
        let q5_0 = BlockFormat::Q5_0.dequantise(&[&half(2.0)[..], &fifth, &[0x21; 16]].concat());
        assert_eq!(&q5_0[..3], [-30.0, 2.0, -30.0]);
        assert_eq!(&q5_0[15..18], [-30.0, 4.0, -28.0]);
        let numbers: Vec<u8> = (0..32).map(|q| (q as i8 - 16) as u8).collect();
        let q8_0 = BlockFormat::Q8_0.dequantise(&[&half(0.25)[..], &numbers].concat());
        assert_eq!((q8_0[0], q8_0[16], q8_0[31]), (-4.0, 0.0, 3.75));
    }

    #[test]
    fn q4_k_block_by_hand() {
        let mut block = vec![0u8; 144];
        block[..2].copy_from_slice(&half(1.0));
        block[2..4].copy_from_slice(&half(0.5));
        block[4] = 3 | 2 << 6; // scale 0 = 3; the high bits of scale 4 = 2
        block[8] = 10 | 1 << 6; // minimum 0 = 10; the high bits of minimum 4 = 1
        block[12] = 5 | 6 << 4; // the low bits of scale 4 and minimum 4
        block[16] = 7; // number 0 of run 0
        block[16 + 64] = 2; // number 0 of run 4
        let numbers = BlockFormat::Q4K.dequantise(&block);
        assert_eq!(numbers[0], 3.0 * 7.0 - 5.0);
        assert_eq!(numbers[1], -5.0);
        assert_eq!(numbers[128], (5.0 + 32.0) * 2.0 - 0.5 * (6.0 + 16.0));
    }

    #[test]
    fn q6_k_block_by_hand() {
        let mut block = vec![0u8; 210];
        block[208..].copy_from_slice(&half(0.5));
        block[0] = 0x9; // low bits of number 0; number 64 has 0 in the upper half
        block[128] = 0b11; // high bits of number 0
        block[192] = 2;
        block[200] = (-3i8) as u8; // scale of the first sixteen of the second half
        let numbers = BlockFormat::Q6K.dequantise(&block);
        assert_eq!(numbers[0], 0.5 * 2.0 * (9.0 + 48.0 - 32.0));
        assert_eq!(numbers[1], 0.5 * 2.0 * -32.0);
        assert_eq!(numbers[128], 0.5 * -3.0 * -32.0);
        assert_eq!(numbers[16], 0.0);
    }

    /// candle reads the same formats with code of its own.
    #[test]
    fn every_block_format_agrees_with_candle() {
        let numbers: Vec<f32> = (0..1024u32).map(|i| ((i * 2_654_435_761) >> 8) as f32 / 8e6 - 1.0).collect();
        let source = Tensor::from_slice(&numbers, (4, 256), &Device::Cpu).unwrap();
        for (format, ggml) in [
            (BlockFormat::F16, GgmlDType::F16),
            (BlockFormat::Bf16, GgmlDType::BF16),
            (BlockFormat::Q4_0, GgmlDType::Q4_0),
            (BlockFormat::Q4_1, GgmlDType::Q4_1),
            (BlockFormat::Q5_0, GgmlDType::Q5_0),
            (BlockFormat::Q8_0, GgmlDType::Q8_0),
            (BlockFormat::Q4K, GgmlDType::Q4K),
            (BlockFormat::Q6K, GgmlDType::Q6K),
        ] {
            let packed = QTensor::quantize(&source, ggml).unwrap();
            let bytes = packed.data().unwrap();
            assert_eq!(Some(bytes.len()), format.bytes_of(1024), "{format:?}");
            let theirs = packed.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let ours = format.dequantise(&bytes);
            let gap = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(ours.len() == theirs.len() && gap < 1e-6, "{format:?} differs by {gap}");
        }
    }

    #[test]
    fn random_k_blocks_agree_with_candle() {
        use rand::{RngExt, SeedableRng};
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(7);
        for (format, ggml, scales) in
            [(BlockFormat::Q4K, GgmlDType::Q4K, vec![0, 2]), (BlockFormat::Q6K, GgmlDType::Q6K, vec![208])]
        {
            let mut bytes: Vec<u8> = (0..format.block().1).map(|_| random.random()).collect();
            for at in scales {
                bytes[at..at + 2].copy_from_slice(&half(0.125));
            }
            let storage = QStorage::from_data(bytes.clone().into(), &Device::Cpu, ggml).unwrap();
            let packed = QTensor::new(storage, 256).unwrap();
            let theirs = packed.dequantize(&Device::Cpu).unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(format.dequantise(&bytes), theirs, "{format:?}");
        }
    }
}
