//! The routes' [`Backend`] over the real engine.

use crate::backend::{Backend, Card, Chat, EncodeOptions, TemplateError};
use engine::request::{Refused, Request, Sink, Stats, Ticket, TokenId};
use engine::template::{ChatInput, CivilTime};
use engine::{Engine, tokenizer};

/// An engine and what is said about its model.
#[derive(Debug)]
pub struct EngineBackend {
    engine: Engine,
    card: Card,
    /// Seconds that local time is ahead of UTC, for templates that ask for the date.
    utc_offset_seconds: i64,
}

impl EngineBackend {
    /// `card` gets from the engine what it knows better; its names, times and digests stay as they are.
    pub fn new(engine: Engine, card: Card, utc_offset_seconds: i64) -> Self {
        let model = engine.model();
        let card = Card {
            context_tokens: engine.config().context_tokens,
            context_tokens_trained: model.context_tokens(),
            vocabulary: model.vocabulary(),
            parameters: model.parameters(),
            file_bytes: model.gguf().len_bytes(),
            quantization: model.main_format().to_owned(),
            ..card
        };
        Self { engine, card, utc_offset_seconds }
    }

    /// Waits, once it is shut down, until what is kept over a restart is written, where something is.
    pub fn finish(&self) {
        if self.engine.config().saved_cache.is_some() {
            self.engine.finish();
        }
    }

    fn now(&self) -> CivilTime {
        let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let seconds = since_1970.map_or(0, |d| d.as_secs().min(i64::MAX as u64) as i64);
        CivilTime::from_unix(seconds.saturating_add(self.utc_offset_seconds))
    }
}

impl Backend for EngineBackend {
    fn card(&self) -> &Card {
        &self.card
    }

    fn encode(&self, text: &str, options: EncodeOptions) -> Vec<TokenId> {
        let EncodeOptions { add_special, parse_special } = options;
        self.engine.tokenizer().encode(text, tokenizer::EncodeOptions { add_special, parse_special })
    }

    fn token_bytes(&self, token: TokenId) -> Option<&[u8]> {
        let tokenizer = self.engine.tokenizer();
        ((token as usize) < tokenizer.vocabulary()).then(|| tokenizer.shown_bytes(token))
    }

    fn decode(&self, tokens: &[TokenId]) -> String {
        self.engine.tokenizer().decode(tokens, true)
    }

    fn beginning_of_sequence(&self) -> Option<TokenId> {
        let tokenizer = self.engine.tokenizer();
        tokenizer.bos().filter(|_| tokenizer.adds_bos())
    }

    fn render(&self, chat: &Chat) -> Result<String, TemplateError> {
        let error = |message: String| TemplateError { message };
        let template = match self.engine.model().template() {
            Some(Ok(template)) => template,
            Some(Err(broken)) => return Err(error(broken.to_string())),
            None => {
                let message = "this model has no chat template; /v1/completions takes plain prompts";
                return Err(error(message.to_owned()));
            }
        };
        let input = ChatInput {
            messages: chat.messages.clone(),
            tools: chat.tools.clone(),
            add_generation_prompt: chat.add_generation_prompt,
            extra: chat.extra.clone(),
            now: self.now(),
        };
        let rendered = template.render(&input);
        rendered.map_err(|e| error(e.refusal().map_or_else(|| e.to_string(), str::to_owned)))
    }

    fn submit(&self, request: Request, sink: Sink) -> Result<Ticket, Refused> {
        self.engine.submit(request, sink)
    }

    fn stats(&self) -> Stats {
        self.engine.stats()
    }

    fn shut_down(&self) {
        self.engine.shut_down();
    }
}
