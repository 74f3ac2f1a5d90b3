//! The parts of a layer that mix positions, up to the matrix that leads back to the residual stream.

use super::{Forward, Outputs, Tokens};
use crate::cache::{KvCache, LayerCache};
use crate::model::config::{self, BeforeFeedForward};
use crate::model::weights::{self, Weights};
use kernels::ops::{self, Product, kinds_for};

impl Forward<'_> {
    /// The part of layer `i` that mixes positions. What it makes is added to the residual stream; where the feed-forward part
    /// stands beside it, it is left in `added`.
    pub(super) fn mix<'b>(
        &mut self,
        i: usize,
        weights: &Weights,
        cache: &mut KvCache,
        tokens: &mut Tokens<'b>,
        kept: Option<&Outputs<'b>>,
    ) {
        use config::Mixer as Config;
        use weights::Mixer as Parts;
        let config = self.model.config.layer(i);
        let layer = weights.parts.layer(i);
        // Each leaves what it has mixed in `attended`, for the tokens that are kept.
        let output = match (&config.mixer, &layer.mixer, cache.layer_mut(i)) {
            (Config::Attention(config), Parts::Attention(parts), LayerCache::Kv(kv)) => {
                self.attention(weights, layer, (config, parts), tokens, kept, kv);
                &parts.output
            }
            (Config::Latent(config), Parts::Latent(parts), LayerCache::Kv(kv)) => {
                self.latent(weights, layer, (config, parts), tokens, kept, kv);
                &parts.output
            }
            (Config::ShortConvolution(_), Parts::ShortConvolution(parts), LayerCache::State(state)) => {
                self.short_convolution(weights, layer, parts, tokens, state);
                self.keep_attended(tokens, kept);
                &parts.output
            }
            (Config::Mamba(config), Parts::Mamba(parts), LayerCache::State(state)) => {
                self.mamba(weights, layer, (*config, parts), tokens, state);
                self.keep_attended(tokens, kept);
                &parts.output
            }
            (Config::DeltaNet(config), Parts::DeltaNet(parts), LayerCache::State(state)) => {
                self.delta_net(weights, layer, (*config, parts), tokens, state);
                self.keep_attended(tokens, kept);
                &parts.output
            }
            _ => unreachable!("weights and the cache are made as the configuration says"),
        };
        let kinds = kinds_for([weights.matrix(output)]);
        ops::activate(self.context(), &self.attended, kinds, &mut self.activations);
        self.adapting.note(&self.attended);
        if config.norms.before_feed_forward == BeforeFeedForward::Parallel {
            let affine = weights.affine(output);
            self.added.reset(self.activations.tokens(), affine.matrix.rows());
            let context = self.context();
            ops::multiply(context, &self.activations, &mut [Product::new(affine, &mut self.added)]);
            self.adapting.add(context, output, &mut self.added);
        } else {
            self.add_product(weights, output, layer.mixed_norm.as_ref());
        }
    }

    /// Drops what is left of tokens whose logits are not wanted, before queries meet keys.
    pub(super) fn keep_queries<'b>(&mut self, tokens: &mut Tokens<'b>, kept: Option<&Outputs<'b>>) {
        if let Some(outputs) = kept {
            self.keep_rows(&outputs.rows);
            self.queries.keep(&outputs.rows);
            tokens.keep(outputs);
        }
    }

    /// The same after all is mixed.
    fn keep_attended<'b>(&mut self, tokens: &mut Tokens<'b>, kept: Option<&Outputs<'b>>) {
        if let Some(outputs) = kept {
            self.keep_rows(&outputs.rows);
            self.attended.keep(&outputs.rows);
            tokens.keep(outputs);
        }
    }
}
