//! Helpers that several integration tests share.

pub mod hub;

/// By how much more than usual 8-bit graphs may be off on this processor. Without instructions for 8-bit dot products
/// ONNX Runtime adds pairs of products in 16 bits, which saturate: with the random weights of the tests this costs several
/// times what rounding does.
pub fn int8_slack() -> f32 {
    #[cfg(target_arch = "x86_64")]
    if !std::is_x86_feature_detected!("avx512vnni") && !std::is_x86_feature_detected!("avxvnni") {
        return 10.0;
    }
    1.0
}
