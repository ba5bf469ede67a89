//! The run's own counter-based generator: a draw is a pure function of (seed, stream, index).
//!
//! Nothing has to be saved to resume and no draw depends on how many threads ran before it. The
//! function is Philox 4x32 with 10 rounds (Salmon et al., "Parallel random numbers: as easy as 1,
//! 2, 3", SC 2011).

/// What a draw is for. Streams never overlap, so adding a use never moves another's draws.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Stream {
    /// Weight initialisation.
    Init = 1,
    /// Order of the training sequences.
    Shuffle = 2,
    /// The `random` score.
    Score = 3,
    /// Text of the generated stories.
    Corpus = 4,
    /// Sampling of generated text.
    Sample = 5,
    /// Train / validation split of documents.
    Split = 6,
    /// Dropped tokens that the mean-CVaR mixture draws.
    Rest = 7,
    /// Ids drawn from the teacher's distribution.
    Teacher = 8,
    /// The `random` score of the early-exit filter.
    Probe = 9,
    /// Rows that a sampled backward keeps.
    Backward = 10,
}

/// A generator for one (seed, stream): every method takes the index of the draw.
#[derive(Debug, Clone, Copy)]
pub struct Rng {
    key: [u32; 2],
    stream: u32,
}

impl Rng {
    /// The generator of `stream` under `seed`.
    pub fn new(seed: u64, stream: Stream) -> Self {
        Self { key: [seed as u32, (seed >> 32) as u32], stream: stream as u32 }
    }

    /// Draw `index` of sub-stream `sub` (a tensor, an epoch, a step): 128 random bits.
    pub fn block(&self, sub: u32, index: u64) -> [u32; 4] {
        philox4x32([index as u32, (index >> 32) as u32, sub, self.stream], self.key)
    }

    /// 64 random bits.
    pub fn bits(&self, sub: u32, index: u64) -> u64 {
        let b = self.block(sub, index);
        u64::from(b[0]) | (u64::from(b[1]) << 32)
    }

    /// Uniform in [0, 1) with 24 random bits, exact in f32.
    pub fn uniform(&self, sub: u32, index: u64) -> f32 {
        (self.block(sub, index)[0] >> 8) as f32 * (1.0 / (1u32 << 24) as f32)
    }

    /// Uniform integer below `bound` (which must not be 0); bias below 2^-32 for every bound under
    /// 2^32.
    pub fn below(&self, sub: u32, index: u64, bound: u64) -> u64 {
        ((u128::from(self.bits(sub, index)) * u128::from(bound)) >> 64) as u64
    }

    /// Standard normal by Box-Muller, in f64 so that the tails are right.
    pub fn normal(&self, sub: u32, index: u64) -> f64 {
        let b = self.block(sub, index);
        let u1 = (f64::from(b[0]) + 1.0) / 4_294_967_296.0; // (0, 1]: the logarithm stays finite
        let u2 = f64::from(b[1]) / 4_294_967_296.0;
        (-2.0 * u1.ln()).sqrt() * (std::f64::consts::TAU * u2).cos()
    }
}

fn philox4x32(mut ctr: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let p0 = u64::from(ctr[0]) * 0xD251_1F53;
        let p1 = u64::from(ctr[2]) * 0xCD9E_8D57;
        ctr = [
            (p1 >> 32) as u32 ^ ctr[1] ^ key[0],
            p1 as u32,
            (p0 >> 32) as u32 ^ ctr[3] ^ key[1],
            p0 as u32,
        ];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    ctr
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_matches_the_published_test_vectors() {
        // Random123, kat_vectors: philox4x32 10
        assert_eq!(
            philox4x32([0; 4], [0; 2]),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            philox4x32([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
    }

    #[test]
    fn draws_have_the_right_moments() {
        let rng = Rng::new(7, Stream::Init);
        let n = 40_000u64;
        let (mut mean, mut var, mut uniform) = (0.0, 0.0, 0.0);
        for i in 0..n {
            let z = rng.normal(0, i);
            mean += z;
            var += z * z;
            uniform += f64::from(rng.uniform(1, i));
            assert!(rng.below(2, i, 7) < 7);
        }
        let n = n as f64;
        // Three standard errors: 3/sqrt(n) = 0.015 for the mean, 3*sqrt(2/n) = 0.021 for the
        // variance.
        assert!((mean / n).abs() < 0.015, "mean {}", mean / n);
        assert!((var / n - 1.0).abs() < 0.022, "variance {}", var / n);
        assert!((uniform / n - 0.5).abs() < 0.0045, "uniform mean {}", uniform / n);
    }

    #[test]
    fn streams_and_seeds_differ() {
        let a = Rng::new(1, Stream::Init).bits(0, 0);
        assert_ne!(a, Rng::new(2, Stream::Init).bits(0, 0));
        assert_ne!(a, Rng::new(1, Stream::Shuffle).bits(0, 0));
        assert_ne!(a, Rng::new(1, Stream::Init).bits(1, 0));
    }
}
