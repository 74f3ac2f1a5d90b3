//! The boundary where an error gets a kind (the exit code) and a hint that says what to do next.

use crate::talk;
use engine::gguf::GgufError;
use engine::request::Refused;
use engine::{AdapterError, DraftError, Isa, ModelError};
use std::io;
use std::process::ExitCode;
use wire::listen::ListenError;

/// What went wrong, by what the caller can do about it. The number is the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nobody reads the output any more: the end, but no failure.
    BrokenPipe = 0,
    Failed = 1,
    /// What was asked for cannot be.
    Usage = 2,
    /// A file is not there or cannot be read.
    File = 3,
    /// A file is damaged, no model, or a model of a kind that is not known.
    Model = 4,
    Memory = 5,
    Network = 6,
}

#[derive(Debug)]
pub(crate) struct CliError {
    kind: Kind,
    source: anyhow::Error,
    hint: Option<String>,
}

impl CliError {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, source: anyhow::Error::msg(message.into()), hint: None }
    }

    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Whether the reader of the output is gone.
    pub(crate) fn is_broken_pipe(&self) -> bool {
        self.kind == Kind::BrokenPipe
    }

    #[cfg(test)]
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    #[cfg(test)]
    pub(crate) fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Tells the user and gives the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        if self.kind != Kind::BrokenPipe {
            talk::say(format_args!("error: {:#}", self.source));
            if let Some(hint) = &self.hint {
                talk::say(format_args!("hint: {hint}"));
            }
        }
        ExitCode::from(self.kind as u8)
    }

    /// The error without its hint, in one line.
    pub(crate) fn message(&self) -> String {
        format!("{:#}", self.source)
    }
}

impl<E: Into<anyhow::Error>> From<E> for CliError {
    fn from(error: E) -> Self {
        let source = error.into();
        let (kind, hint) = classify(&source);
        Self { kind, source, hint: hint.map(str::to_owned) }
    }
}

const DRAFT_HINT: &str = "a draft model is a smaller one of the same series, which has the same vocabulary";

/// Kind and hint of the innermost error that says something about them.
fn classify(error: &anyhow::Error) -> (Kind, Option<&'static str>) {
    let known = |cause: &(dyn std::error::Error + 'static)| {
        let of_gguf = cause.downcast_ref::<GgufError>().map(gguf);
        let of_model = cause.downcast_ref::<ModelError>().map(model);
        let of_listen = cause.downcast_ref::<ListenError>().map(listen);
        let of_draft = cause.downcast_ref::<DraftError>().map(|_| (Kind::Model, Some(DRAFT_HINT)));
        let of_adapter = cause.downcast_ref::<AdapterError>().map(adapter);
        let of_refused = cause.downcast_ref::<Refused>().map(refused);
        let of_io = cause.downcast_ref::<io::Error>().map(input_output);
        of_gguf.or(of_model).or(of_draft).or(of_adapter).or(of_listen).or(of_refused).or(of_io)
    };
    error.chain().find_map(known).unwrap_or((Kind::Failed, None))
}

fn gguf(error: &GgufError) -> (Kind, Option<&'static str>) {
    match error {
        GgufError::Io { path, source } if path.is_dir() || source.kind() == io::ErrorKind::IsADirectory => {
            (Kind::File, Some("name a file within the folder, such as model.gguf"))
        }
        GgufError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            (Kind::File, Some("check the path; `dunlin up` has a model built in"))
        }
        GgufError::Io { .. } => (Kind::File, None),
        GgufError::SplitMissing { .. } => (Kind::File, Some("put all parts of the model into one folder")),
        GgufError::InFile { source, .. } => gguf(source),
        GgufError::Magic { .. } => {
            (Kind::Model, Some("models are files in GGUF format, usually called NAME.gguf"))
        }
        GgufError::Truncated { .. } | GgufError::OutOfFile { .. } => {
            (Kind::Model, Some("the file seems to be cut off; copy or download it again"))
        }
        _ => (Kind::Model, None),
    }
}

fn model(error: &ModelError) -> (Kind, Option<&'static str>) {
    match error {
        ModelError::Gguf(error) => gguf(error),
        ModelError::IsaMissing(_) => {
            (Kind::Usage, Some("leave out --isa to use the fastest that this processor has"))
        }
        ModelError::OutOfMemory { .. } => (Kind::Memory, None),
        error if error.is_unknown_kind() => {
            (Kind::Model, Some("`dunlin inspect MODEL` shows what the file is made of"))
        }
        _ => (Kind::Model, None),
    }
}

fn adapter(error: &AdapterError) -> (Kind, Option<&'static str>) {
    let hint = match error {
        AdapterError::Gguf(error) => return gguf(error),
        AdapterError::Activated | AdapterError::UnknownFormat { .. } | AdapterError::Alpha { .. } => None,
        AdapterError::NoAdapter { .. } => Some(
            "adapters are made by llama.cpp's convert_lora_to_gguf.py; a whole model is served without --lora",
        ),
        _ => Some("an adapter works with the model that it was trained on, in any quantization"),
    };
    (Kind::Model, hint)
}

fn listen(error: &ListenError) -> (Kind, Option<&'static str>) {
    let hint = match error {
        ListenError::InUse { .. } => {
            "end the other program, or choose another port: --port 8081 (0: any free one)"
        }
        ListenError::Denied { .. } => "choose a port from 1024 up, such as --port 8080",
        ListenError::NoSuchAddress { .. } => {
            "--host 127.0.0.1 is this machine only, --host 0.0.0.0 every network it is in"
        }
        ListenError::Other { .. } => return (Kind::Network, None),
    };
    (Kind::Network, Some(hint))
}

fn refused(error: &Refused) -> (Kind, Option<&'static str>) {
    match error {
        Refused::EmptyPrompt => (Kind::Usage, Some("say something: dunlin run \"hello\"")),
        Refused::PromptTooLong { .. } => (
            Kind::Usage,
            Some("shorten the prompt, or set a larger context with --ctx-size where the model allows it"),
        ),
        Refused::OtherPurpose(_) => (Kind::Model, None),
        Refused::UnknownToken { .. }
        | Refused::InvalidSampling { .. }
        | Refused::UnknownAdapter { .. }
        | Refused::InvalidAdapter { .. } => (Kind::Usage, None),
        Refused::QueueFull { .. } | Refused::ShuttingDown => (Kind::Failed, None),
    }
}

fn input_output(error: &io::Error) -> (Kind, Option<&'static str>) {
    match error.kind() {
        io::ErrorKind::BrokenPipe => (Kind::BrokenPipe, None),
        _ => (Kind::Failed, None),
    }
}

/// The instruction sets that this processor has, for messages.
pub(crate) fn supported_isas() -> String {
    let names: Vec<_> = Isa::ALL.iter().filter(|isa| isa.is_supported()).map(|isa| isa.name()).collect();
    names.join(", ")
}
