//! Chooses the next token from the logits.
//!
//! The chain is llama.cpp's in its order: bias, penalties, top-k, top-p, min-p, temperature, then one draw. A sampler
//! holds all the state there is, so the same request and seed give the same tokens whatever else is running.

use crate::request::{Refused, Sampling, TOP_LOGPROBS_MAX, TokenId, TokenLogprob};
use kernels::{Context, ops};
use std::collections::{HashMap, VecDeque};
use stdx::random::Random;

/// The most tokens whose logits a request may bias.
const LOGIT_BIAS_MAX: usize = 1 << 16;

/// The tokens that a draw without top-k is cut to: below them lies less probability than a draw can hit.
const CANDIDATES_MAX: usize = 4096;

/// Refuses what no sampler can follow.
pub(crate) fn check(sampling: &Sampling, vocabulary: usize) -> Result<(), Refused> {
    let refuse = |field, reason: String| Err(Refused::InvalidSampling { field, reason });
    let floats = [
        ("temperature", sampling.temperature, 0.0, f32::MAX),
        ("top_p", sampling.top_p, 0.0, 1.0),
        ("min_p", sampling.min_p, 0.0, 1.0),
        ("repeat_penalty", sampling.repeat_penalty, f32::MIN_POSITIVE, f32::MAX),
        ("presence_penalty", sampling.presence_penalty, -1e6, 1e6),
        ("frequency_penalty", sampling.frequency_penalty, -1e6, 1e6),
    ];
    for (field, value, min, max) in floats {
        // NaN is in no range.
        if !(min..=max).contains(&value) {
            return refuse(field, format!("{value} is out of range"));
        }
    }
    if sampling.logit_bias.len() > LOGIT_BIAS_MAX {
        return refuse("logit_bias", format!("more than {LOGIT_BIAS_MAX} entries"));
    }
    if let Some((id, _)) = sampling.logit_bias.iter().find(|(id, _)| *id as usize >= vocabulary) {
        return refuse("logit_bias", format!("token id {id} is outside of the vocabulary of {vocabulary}"));
    }
    if let Some((id, _)) =
        sampling.logit_bias.iter().find(|(_, bias)| bias.is_nan() || *bias == f32::INFINITY)
    {
        return refuse("logit_bias", format!("the bias of token {id} is not a number"));
    }
    Ok(())
}

/// One request's way of choosing.
#[derive(Clone, Debug)]
pub(crate) struct Sampler {
    sampling: Sampling,
    random: Random,
    recent: VecDeque<TokenId>,
    counts: HashMap<TokenId, u32>,
    scratch: Vec<f32>,
}

impl Sampler {
    /// `seed` is used where the request has none.
    pub(crate) fn new(sampling: Sampling, seed: u64, prompt: &[TokenId]) -> Self {
        let random = Random::new(sampling.seed.unwrap_or(seed));
        let mut sampler =
            Self { sampling, random, recent: VecDeque::new(), counts: HashMap::new(), scratch: Vec::new() };
        let window = sampler.window();
        for &token in &prompt[prompt.len().saturating_sub(window)..] {
            sampler.accept(token);
        }
        sampler
    }

    /// How many tokens penalties look back over, where there are as many; 0 where there are no penalties.
    fn window(&self) -> usize {
        let s = &self.sampling;
        let off = s.repeat_penalty == 1.0 && s.presence_penalty == 0.0 && s.frequency_penalty == 0.0;
        if off { 0 } else { s.repeat_last_n }
    }

    /// Chooses from the logits of one position and remembers the choice. `banned` tokens cannot be chosen.
    pub(crate) fn choose(&mut self, context: Context<'_>, logits: &[f32], banned: &[TokenId]) -> TokenId {
        let untouched = self.sampling.logit_bias.is_empty() && self.counts.is_empty() && banned.is_empty();
        let mut scratch = std::mem::take(&mut self.scratch);
        let logits = if untouched {
            logits
        } else {
            scratch.clear();
            scratch.extend_from_slice(logits);
            self.adjust(&mut scratch, banned);
            &scratch
        };
        let chosen = if self.sampling.temperature == 0.0 {
            greedy(context, logits)
        } else {
            self.draw(context, logits)
        };
        self.scratch = scratch;
        if self.window() > 0 {
            self.accept(chosen);
        }
        chosen
    }

    fn accept(&mut self, token: TokenId) {
        self.recent.push_back(token);
        *self.counts.entry(token).or_default() += 1;
        if self.recent.len() > self.window()
            && let Some(old) = self.recent.pop_front()
            && let Some(count) = self.counts.get_mut(&old)
        {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&old);
            }
        }
    }

    fn adjust(&self, logits: &mut [f32], banned: &[TokenId]) {
        let s = &self.sampling;
        for &(id, bias) in &s.logit_bias {
            logits[id as usize] += bias;
        }
        for (&id, &count) in &self.counts {
            let logit = &mut logits[id as usize];
            *logit = if *logit <= 0.0 { *logit * s.repeat_penalty } else { *logit / s.repeat_penalty };
            *logit -= count as f32 * s.frequency_penalty + s.presence_penalty;
        }
        for &id in banned {
            logits[id as usize] = f32::NEG_INFINITY;
        }
    }

    fn draw(&mut self, context: Context<'_>, logits: &[f32]) -> TokenId {
        let s = &self.sampling;
        let keep = if s.top_k == 0 { CANDIDATES_MAX } else { s.top_k.min(CANDIDATES_MAX) };
        let mut candidates = largest(context, logits, keep);
        // Probabilities for top-p and min-p are those before the temperature.
        let mut weights = softmax(candidates.iter().map(|c| c.1));
        let min = s.min_p * weights.first().copied().unwrap_or(0.0);
        let mut sum = 0.0;
        let within = weights.iter().take_while(|&&w| {
            let before = sum;
            sum += w;
            // A sum of 1 is reached early where rounding makes one of what is next to it.
            (s.top_p >= 1.0 || before < s.top_p) && w >= min
        });
        let kept = within.count().max(1);
        candidates.truncate(kept);
        weights = softmax(candidates.iter().map(|c| c.1 / s.temperature));
        let mut left = self.random.f64() as f32;
        for (candidate, weight) in candidates.iter().zip(&weights) {
            left -= weight;
            if left < 0.0 {
                return candidate.0;
            }
        }
        candidates[0].0
    }
}

/// The likeliest token; the first of equals. NaN is never chosen where there is a number.
fn greedy(context: Context<'_>, logits: &[f32]) -> TokenId {
    let max = ops::max(context, logits);
    logits.iter().position(|&l| l == max).unwrap_or(0) as TokenId
}

/// Probabilities of logits that are sorted, largest first.
fn softmax(logits: impl Iterator<Item = f32> + Clone) -> Vec<f32> {
    let max = logits.clone().next().unwrap_or(0.0);
    let mut weights: Vec<f32> = logits.map(|l| if max.is_finite() { (l - max).exp() } else { 0.0 }).collect();
    let sum: f32 = weights.iter().sum();
    if sum > 0.0 {
        weights.iter_mut().for_each(|w| *w /= sum);
    }
    weights
}

/// The `count` largest logits, best first; lower ids come first among equals.
fn largest(context: Context<'_>, logits: &[f32], count: usize) -> Vec<(TokenId, f32)> {
    let order = |a: &(TokenId, f32), b: &(TokenId, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    // Few logits are near the top: a threshold below the maximum keeps most of the vocabulary from being sorted.
    let max = ops::max(context, logits);
    let mut found: Vec<(TokenId, f32)> = Vec::new();
    for depth in [8.0, 24.0, f32::INFINITY] {
        let least = max - depth;
        found.clear();
        let above = logits.iter().enumerate().filter(|(_, l)| **l >= least || depth.is_infinite());
        found.extend(above.filter(|(_, l)| !l.is_nan()).map(|(id, &l)| (id as TokenId, l)));
        if found.len() >= count {
            break;
        }
    }
    if found.is_empty() {
        found.push((0, 0.0));
    }
    if found.len() > count {
        found.select_nth_unstable_by(count, order);
        found.truncate(count);
    }
    found.sort_unstable_by(order);
    found
}

/// Log-probabilities of the chosen token and of the `count` likeliest ones under the unmodified model.
pub(crate) fn log_probabilities(
    context: Context<'_>,
    logits: &[f32],
    chosen: TokenId,
    count: usize,
) -> TokenLogprob {
    let denominator = ops::log_sum_exp(context, logits);
    let count = count.min(TOP_LOGPROBS_MAX);
    let mut top = if count == 0 { Vec::new() } else { largest(context, logits, count) };
    top.iter_mut().for_each(|(_, l)| *l -= denominator);
    TokenLogprob { logprob: logits[chosen as usize] - denominator, top }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernels::{Isa, Pool};

    fn with_context(f: impl Fn(Context<'_>)) {
        let table = Isa::detect().table().expect("the detected set is supported");
        f(Context { table, pool: &Pool::new(1) });
    }

    fn sampling() -> Sampling {
        Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: Some(7), ..Sampling::default() }
    }

    #[test]
    fn draws_follow_the_probabilities() {
        with_context(|context| {
            let logits = [1.0f32, 0.0, 2.0, f32::NEG_INFINITY];
            let mut sampler = Sampler::new(sampling(), 0, &[]);
            let mut counts = [0u32; 4];
            for _ in 0..20_000 {
                counts[sampler.choose(context, &logits, &[]) as usize] += 1;
            }
            let total: f32 = [1.0f32, 0.0, 2.0].iter().map(|l| l.exp()).sum();
            for (count, logit) in counts.iter().zip(logits) {
                let want = logit.exp() / total * 20_000.0;
                assert!((*count as f32 - want).abs() < 300.0, "{counts:?}");
            }
        });
    }

    #[test]
    fn a_top_p_of_1_keeps_what_is_next_to_impossible() {
        with_context(|context| {
            // The first has a probability of 1 in 32 bits, and at this temperature all are equal.
            let hot = Sampling { temperature: 1e6, ..sampling() };
            let mut sampler = Sampler::new(hot, 0, &[]);
            let chosen: std::collections::HashSet<_> =
                (0..200).map(|_| sampler.choose(context, &[50.0, 0.0, 1.0, 2.0], &[])).collect();
            assert_eq!(chosen.len(), 4);
        });
    }

    #[test]
    fn same_seed_same_tokens_and_another_seed_others() {
        with_context(|context| {
            let logits: Vec<f32> = (0..100).map(|i| (i as f32 * 0.77).sin()).collect();
            let run = |seed| -> Vec<TokenId> {
                let mut sampler = Sampler::new(Sampling { seed: Some(seed), ..sampling() }, 0, &[]);
                (0..50).map(|_| sampler.choose(context, &logits, &[])).collect()
            };
            assert_eq!(run(1), run(1));
            assert_ne!(run(1), run(2));
        });
    }

    #[test]
    fn each_filter_keeps_what_it_should() {
        with_context(|context| {
            // Probabilities 0.5, 0.25, 0.125, 0.125.
            let logits: Vec<f32> = [0.5f32, 0.25, 0.125, 0.125].iter().map(|p| p.ln()).collect();
            let seen = |sampling: Sampling| {
                let mut sampler = Sampler::new(sampling, 0, &[]);
                let mut seen: Vec<_> = (0..500).map(|_| sampler.choose(context, &logits, &[])).collect();
                seen.sort_unstable();
                seen.dedup();
                seen
            };
            assert_eq!(seen(sampling()), [0, 1, 2, 3]);
            assert_eq!(seen(Sampling { top_k: 2, ..sampling() }), [0, 1]);
            assert_eq!(seen(Sampling { top_p: 0.5, ..sampling() }), [0]);
            assert_eq!(seen(Sampling { top_p: 0.51, ..sampling() }), [0, 1]);
            assert_eq!(seen(Sampling { min_p: 0.4, ..sampling() }), [0, 1]);
            assert_eq!(seen(Sampling { logit_bias: vec![(0, f32::NEG_INFINITY)], ..sampling() }), [1, 2, 3]);
            assert_eq!(seen(Sampling { temperature: 0.0, ..sampling() }), [0]);
        });
    }

    #[test]
    fn penalties_make_room_for_others() {
        with_context(|context| {
            let logits = [3.0, 2.9, -1.0];
            let greedy = |sampling: Sampling| {
                let mut sampler = Sampler::new(Sampling { temperature: 0.0, ..sampling }, 0, &[2]);
                (0..4).map(|_| sampler.choose(context, &logits, &[])).collect::<Vec<_>>()
            };
            assert_eq!(greedy(sampling()), [0, 0, 0, 0]);
            assert_eq!(greedy(Sampling { presence_penalty: 0.2, ..sampling() }), [0, 1, 0, 0]);
            assert_eq!(greedy(Sampling { frequency_penalty: 0.2, ..sampling() }), [0, 1, 0, 1]);
            assert_eq!(
                greedy(Sampling { repeat_penalty: 1.5, repeat_last_n: 1, ..sampling() }),
                [0, 1, 0, 1]
            );
        });
    }

    #[test]
    fn a_window_of_any_size_looks_back_over_all_tokens() {
        with_context(|context| {
            let penalties =
                Sampling { temperature: 0.0, presence_penalty: 1.0, repeat_last_n: usize::MAX, ..sampling() };
            assert_eq!(check(&penalties, 3), Ok(()));
            let mut sampler = Sampler::new(penalties, 0, &[0]);
            let chosen: Vec<_> = (0..3).map(|_| sampler.choose(context, &[3.0, 2.9, 2.8], &[])).collect();
            assert_eq!(chosen, [1, 2, 0]);
        });
    }

    #[test]
    fn what_is_not_a_number_is_refused_or_survived() {
        assert!(check(&Sampling { temperature: f32::NAN, ..sampling() }, 4).is_err());
        assert!(check(&Sampling { top_p: 1.5, ..sampling() }, 4).is_err());
        assert!(check(&Sampling { logit_bias: vec![(4, 0.0)], ..sampling() }, 4).is_err());
        assert!(check(&sampling(), 4).is_ok());
        with_context(|context| {
            for bad in [[f32::NAN; 4], [f32::INFINITY; 4], [f32::NEG_INFINITY; 4]] {
                for temperature in [0.0, 1.0] {
                    let mut sampler = Sampler::new(Sampling { temperature, ..sampling() }, 0, &[]);
                    assert!(sampler.choose(context, &bad, &[]) < 4);
                }
            }
        });
    }

    #[test]
    fn log_probabilities_add_up_to_one() {
        with_context(|context| {
            let logits = [0.3, -2.0, 1.5, 0.0];
            let got = log_probabilities(context, &logits, 1, 4);
            assert_eq!(got.top.iter().map(|t| t.0).collect::<Vec<_>>(), [2, 0, 3, 1]);
            assert!((got.top.iter().map(|t| t.1.exp()).sum::<f32>() - 1.0).abs() < 1e-5);
            assert_eq!(got.logprob, got.top[3].1);
        });
    }
}
