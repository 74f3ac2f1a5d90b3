//! The routes' [`Backend`] over the real engine.

use crate::backend::{Backend, Card, Chat, EncodeOptions, LoadedAdapter, TemplateError};
use engine::model::{Model, Text};
use engine::request::{Refused, Request, Sink, Stats, Ticket, TokenId};
use engine::template::{ChatInput, CivilTime};
use engine::tokenizer::{self, Tokenizer};
use engine::{Adapter, AdapterScale, EncodedSink, Encoder, Engine};

/// A model at work and what is said about it.
#[derive(Debug)]
pub struct EngineBackend {
    worker: Worker,
    card: Card,
    /// Seconds that local time is ahead of UTC, for templates that ask for the date.
    utc_offset_seconds: i64,
}

/// What works with a model, by what it is for.
#[derive(Debug)]
pub enum Worker {
    Generating(Engine),
    Encoding(Encoder),
}

impl From<Engine> for Worker {
    fn from(engine: Engine) -> Self {
        Self::Generating(engine)
    }
}

impl From<Encoder> for Worker {
    fn from(encoder: Encoder) -> Self {
        Self::Encoding(encoder)
    }
}

impl Worker {
    pub fn model(&self) -> &Model {
        match self {
            Self::Generating(engine) => engine.model(),
            Self::Encoding(encoder) => encoder.model(),
        }
    }

    fn context_tokens(&self) -> usize {
        match self {
            Self::Generating(engine) => engine.config().context_tokens,
            Self::Encoding(encoder) => encoder.config().context_tokens,
        }
    }
}

impl EngineBackend {
    /// `card` gets from the model what it knows better; its names, times and digests stay as they are.
    ///
    /// # Panics
    /// If the model has no vocabulary.
    pub fn new(worker: impl Into<Worker>, card: Card, utc_offset_seconds: i64) -> Self {
        let worker = worker.into();
        let model = worker.model();
        assert!(model.tokenizer().is_some(), "a model without a vocabulary has no text");
        let card = Card {
            purpose: model.purpose(),
            embedding_len: model.embedding_len(),
            scores_are_probabilities: model.scores_are_probabilities(),
            context_tokens: worker.context_tokens(),
            context_tokens_trained: model.context_tokens(),
            vocabulary: model.vocabulary(),
            parameters: model.parameters(),
            file_bytes: model.gguf().len_bytes(),
            quantization: model.main_format().to_owned(),
            ..card
        };
        Self { worker, card, utc_offset_seconds }
    }

    /// Waits, once it is shut down, until what is kept over a restart is written, where something is.
    pub fn finish(&self) {
        if let Worker::Generating(engine) = &self.worker
            && engine.config().saved_cache.is_some()
        {
            engine.finish();
        }
    }

    fn tokenizer(&self) -> &Tokenizer {
        self.worker.model().tokenizer().expect("checked when the backend was made")
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
        self.tokenizer().encode(text, tokenizer::EncodeOptions { add_special, parse_special })
    }

    fn token_bytes(&self, token: TokenId) -> Option<&[u8]> {
        let tokenizer = self.tokenizer();
        ((token as usize) < tokenizer.vocabulary()).then(|| tokenizer.shown_bytes(token))
    }

    fn decode(&self, tokens: &[TokenId]) -> String {
        self.tokenizer().decode(tokens, true)
    }

    fn beginning_of_sequence(&self) -> Option<TokenId> {
        let tokenizer = self.tokenizer();
        tokenizer.bos().filter(|_| tokenizer.adds_bos())
    }

    fn render(&self, chat: &Chat) -> Result<String, TemplateError> {
        let error = |message: String| TemplateError { message };
        let template = match self.worker.model().template() {
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

    fn pair(&self, query: &str, document: &str) -> Text {
        if let Some(template) = self.worker.model().pair_template() {
            let with_document = |part: &str| part.split("{document}").collect::<Vec<_>>().join(document);
            let text = template.split("{query}").map(with_document).collect::<Vec<_>>().join(query);
            let options = tokenizer::EncodeOptions { add_special: false, parse_special: true };
            let tokens = self.tokenizer().encode(&text, options);
            return Text { second: tokens.len(), tokens };
        }
        let (tokens, second) = self.tokenizer().encode_pair(query, document);
        Text { tokens, second }
    }

    fn submit_texts(&self, texts: Vec<Text>, sink: EncodedSink) -> Result<Ticket, Refused> {
        match &self.worker {
            Worker::Generating(_) => Err(Refused::OtherPurpose(self.card.purpose)),
            Worker::Encoding(encoder) => encoder.submit(texts, sink),
        }
    }

    fn submit(&self, request: Request, sink: Sink) -> Result<Ticket, Refused> {
        match &self.worker {
            Worker::Generating(engine) => engine.submit(request, sink),
            Worker::Encoding(_) => Err(Refused::OtherPurpose(self.card.purpose)),
        }
    }

    fn adapters(&self) -> Vec<LoadedAdapter> {
        let Worker::Generating(engine) = &self.worker else { return Vec::new() };
        let scales = engine.default_adapters().into_iter().map(|wanted| wanted.scale);
        let loaded = |(adapter, scale): (&Adapter, f32)| LoadedAdapter {
            name: adapter.name(),
            path: adapter.path().map_or_else(String::new, |path| path.display().to_string()),
            scale,
        };
        engine.model().adapters().iter().zip(scales).map(loaded).collect()
    }

    fn set_adapters(&self, wanted: &[AdapterScale]) -> Result<(), Refused> {
        match &self.worker {
            Worker::Generating(engine) => engine.set_default_adapters(wanted),
            Worker::Encoding(_) => Err(Refused::OtherPurpose(self.card.purpose)),
        }
    }

    fn stats(&self) -> Stats {
        match &self.worker {
            Worker::Generating(engine) => engine.stats(),
            Worker::Encoding(encoder) => encoder.stats(),
        }
    }

    fn shut_down(&self) {
        match &self.worker {
            Worker::Generating(engine) => engine.shut_down(),
            Worker::Encoding(encoder) => encoder.shut_down(),
        }
    }
}
