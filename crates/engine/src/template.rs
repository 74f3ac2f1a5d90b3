//! stub
use crate::gguf::Gguf;
use crate::tokenizer::Tokenizer;
#[derive(Debug)]
pub struct ChatTemplate;
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct TemplateError;
impl ChatTemplate {
    pub fn from_gguf(_: &Gguf, _: &Tokenizer) -> Result<Option<ChatTemplate>, TemplateError> {
        Ok(None)
    }
}
