//! Guesses of the next tokens, and whether they pay.
//!
//! A step with several tokens of a sequence takes little longer than one with its last, because reading the weights takes most
//! of the time. So some tokens are guessed and computed with it, and those that turn out as the sampler chooses them are as
//! many tokens for one step (Leviathan, Kalman and Matias, 2023). The sampler chooses from the same logits with the same draws
//! as it would one after the other: what is said does not depend on what was guessed.
//!
//! Guesses are what followed the last tokens where they stood before in the conversation (prompt lookup, Saxena, 2023), or what
//! a small model says (see [`draft`]). How long steps take and how many guesses come true is measured all the time; where
//! guessing does not pay, nothing is guessed.

pub(crate) mod draft;

use crate::request::TokenId;
use std::collections::HashMap;
use std::time::Duration;

/// Tokens that must have stood before for what followed them to be a guess.
const NGRAM: usize = 3;

/// The most tokens of one step that are guessed at or follow a guess: a step with more reads activations longer than weights.
const STEP_TOKENS_MAX: usize = 12;

/// The most guesses of one sequence in a step.
pub(crate) const GUESSES_MAX: usize = 8;

/// How often guesses are taken to come true before any did or did not.
const TRUST_FIRST: f32 = 0.7;

/// What one guess weighs in the share that come true.
const TRUST_WEIGHT: f32 = 0.1;

/// How much trust comes back whenever a guess was not tried, so that it is tried again after a while. Each time that was for
/// nothing it comes back half as fast, down to the least.
const TRUST_RETURN: f32 = 0.004;
const TRUST_RETURN_MIN: f32 = TRUST_RETURN / 16.0;

/// What one step weighs in the time that such steps take.
const PACE_WEIGHT: f64 = 0.1;

/// What another token is taken to add to a step's time before it was measured.
const PACE_FIRST: f64 = 0.08;

/// Guessing pays if it makes this much more of the time.
const GAIN_MIN: f64 = 1.02;

/// What stood before in a conversation, and how good guesses from it were.
#[derive(Debug)]
pub(crate) struct Guesser {
    /// Where each run of tokens was followed by others, most recently.
    followed_at: HashMap<[TokenId; NGRAM], u32>,
    /// Tokens that are in there as what followed.
    seen: usize,
    pub(crate) trust: Trust,
}

impl Guesser {
    pub(crate) fn new() -> Self {
        Self { followed_at: HashMap::new(), seen: NGRAM, trust: Trust::default() }
    }

    /// Up to `most` guesses of what follows `tokens`, to which some were added since the last call.
    pub(crate) fn guess<'a>(&mut self, tokens: &'a [TokenId], most: usize) -> &'a [TokenId] {
        while self.seen < tokens.len() {
            let before =
                tokens[self.seen - NGRAM..self.seen].try_into().expect("as many as there are in a run");
            self.followed_at.insert(before, self.seen as u32);
            self.seen += 1;
        }
        let Some(last) = tokens.last_chunk::<NGRAM>() else { return &[] };
        let Some(&at) = self.followed_at.get(last) else { return &[] };
        let following = &tokens[at as usize..];
        &following[..most.min(following.len())]
    }
}

/// How often guesses of one kind come true.
#[derive(Debug)]
pub(crate) struct Trust {
    share: f32,
    /// How much of it comes back at a time.
    comes_back: f32,
    /// Whether some came back since the last guess.
    came_back: bool,
}

impl Default for Trust {
    fn default() -> Self {
        Self { share: TRUST_FIRST, comes_back: TRUST_RETURN, came_back: false }
    }
}

/// So many guesses in a step, and how many times more of its time it makes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Worth {
    pub(crate) guesses: usize,
    pub(crate) gain: f64,
}

impl Trust {
    /// How many of `guesses` are worth computing in a step that has `others` tokens besides, where making each takes `cost` of
    /// the time of a step with one token; `None` where none are.
    pub(crate) fn worth(&self, guesses: usize, others: usize, pace: &Pace, cost: f64) -> Option<Worth> {
        let most = guesses.min(STEP_TOKENS_MAX.saturating_sub(others));
        if pace.ignored {
            return (most > 0).then_some(Worth { guesses: most, gain: 1.0 / (1.0 + cost) });
        }
        let trust = f64::from(self.share);
        let cost = cost * pace.of(1);
        let mut best: Option<Worth> = None;
        // How many tokens a step with so many guesses gives of this sequence.
        let mut tokens = 1.0;
        for guesses in 1..=most {
            tokens += trust.powi(guesses as i32);
            let time = pace.of(others + guesses) + guesses as f64 * cost;
            let gain = tokens * pace.of(others) / time;
            if gain >= GAIN_MIN && best.is_none_or(|best| gain > best.gain) {
                best = Some(Worth { guesses, gain });
            }
        }
        best
    }

    /// Hears that guesses were not tried.
    pub(crate) fn come_back(&mut self) {
        self.share = (self.share + self.comes_back).min(TRUST_FIRST).max(self.share);
        self.came_back = true;
    }

    /// Hears how many of so many guesses came true; those after the first that did not say nothing.
    pub(crate) fn learn(&mut self, guesses: usize, came_true: usize) {
        for i in 0..guesses.min(came_true + 1) {
            let outcome = if i < came_true { 1.0 } else { 0.0 };
            self.share += (outcome - self.share) * TRUST_WEIGHT;
        }
        if came_true > 0 {
            self.comes_back = TRUST_RETURN;
        } else if guesses > 0 && std::mem::take(&mut self.came_back) {
            self.comes_back = (self.comes_back / 2.0).max(TRUST_RETURN_MIN);
        }
    }
}

/// How long steps take, by their tokens.
#[derive(Debug)]
pub(crate) struct Pace {
    /// 0 where nothing was measured.
    seconds: [f64; STEP_TOKENS_MAX + 1],
    /// Whether it is taken not to matter.
    ignored: bool,
}

impl Pace {
    pub(crate) fn new(ignored: bool) -> Self {
        Self { seconds: [0.0; STEP_TOKENS_MAX + 1], ignored }
    }

    /// Hears of a step in which nothing was done but generating.
    pub(crate) fn learn(&mut self, tokens: usize, time: Duration) {
        let Some(known) = self.seconds.get_mut(tokens) else { return };
        let seconds = time.as_secs_f64();
        *known = if *known == 0.0 { seconds } else { *known + (seconds - *known) * PACE_WEIGHT };
    }

    /// Seconds of a step with one token, where that was measured.
    pub(crate) fn of_one(&self) -> Option<f64> {
        Some(self.seconds[1]).filter(|&seconds| seconds > 0.0)
    }

    /// Measured, or guessed from steps with other numbers of tokens; only ratios mean something where nothing was measured.
    fn of(&self, tokens: usize) -> f64 {
        let first = |tokens: usize| 1.0 + PACE_FIRST * (tokens as f64 - 1.0);
        if self.seconds[tokens] > 0.0 {
            return self.seconds[tokens];
        }
        let measured = (1..self.seconds.len()).filter(|&other| self.seconds[other] > 0.0);
        match measured.min_by_key(|other| other.abs_diff(tokens)) {
            Some(nearest) => self.seconds[nearest] * first(tokens) / first(nearest),
            None => first(tokens),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(seconds: impl Fn(usize) -> f64) -> Pace {
        let mut pace = Pace::new(false);
        (1..=STEP_TOKENS_MAX).for_each(|tokens| pace.learn(tokens, Duration::from_secs_f64(seconds(tokens))));
        pace
    }

    #[test]
    fn guesses_are_what_followed_before() {
        let mut guesser = Guesser::new();
        assert_eq!(guesser.guess(&[1, 2], 8), &[] as &[u32]);
        assert_eq!(guesser.guess(&[1, 2, 3, 4, 5, 1, 2], 8), &[] as &[u32]);
        assert_eq!(guesser.guess(&[1, 2, 3, 4, 5, 1, 2, 3], 8), &[4, 5, 1, 2, 3]);
        assert_eq!(guesser.guess(&[1, 2, 3, 4, 5, 1, 2, 3], 2), &[4, 5]);
        // The most recent place counts.
        assert_eq!(guesser.guess(&[1, 2, 3, 4, 5, 1, 2, 3, 9, 1, 2, 3], 2), &[9, 1]);
        assert_eq!(Guesser::new().guess(&[7, 7, 7, 7], 3), &[7]);
    }

    #[test]
    fn guessing_stops_where_it_does_not_pay_and_is_tried_again() {
        // Another token costs a twentieth of a step.
        let cheap = pace(|tokens| 1.0 + 0.05 * tokens as f64);
        let mut trust = Trust::default();
        let worth = |trust: &Trust, others, pace: &Pace, cost| {
            trust.worth(8, others, pace, cost).map_or(0, |worth| worth.guesses)
        };
        assert!(worth(&trust, 1, &cheap, 0.0) > 2);
        // Where a guess takes as long as a step, none is worth it.
        assert_eq!(worth(&trust, 1, &cheap, 1.0), 0);
        assert!((1..3).contains(&worth(&trust, 1, &cheap, 0.2)));
        (0..30).for_each(|_| trust.learn(3, 0));
        assert_eq!(worth(&trust, 1, &cheap, 0.0), 0);
        let mut tried_again = 0;
        while worth(&trust, 1, &cheap, 0.0) == 0 {
            trust.come_back();
            tried_again += 1;
        }
        assert!((6..100).contains(&tried_again), "{tried_again}");
        // When that was for nothing, it takes longer.
        let mut longer = 0;
        for _ in 0..8 {
            trust.learn(1, 0);
            longer = 0;
            while worth(&trust, 1, &cheap, 0.0) == 0 {
                trust.come_back();
                longer += 1;
            }
        }
        assert!((20..500).contains(&longer), "{longer}");
        (0..30).for_each(|_| trust.learn(3, 3));
        assert_eq!(worth(&trust, 1, &cheap, 0.0), 8);
        assert_eq!(worth(&trust, STEP_TOKENS_MAX - 2, &cheap, 0.0), 2, "a step is not longer than that");
        // Where a step takes as long as its tokens, nothing is worth it.
        assert_eq!(worth(&trust, 1, &pace(|tokens| tokens as f64), 0.0), 0);
    }
}
