//! A conversation, line by line.

use super::report;
use super::session::{Conversation, Session};
use crate::error::CliError;
use crate::talk;
use engine::request::FinishReason;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use std::io::{self, BufRead, IsTerminal, Write};

const PROMPT: &str = "> ";

const HELP: &str = "\
/help    this list
/clear   forget the conversation
/exit    end, as Ctrl-D does
Ctrl-C ends an answer. A line that ends in \\ goes on in the next.";

/// What the user typed.
#[derive(Debug, PartialEq, Eq)]
enum Input<'a> {
    Nothing,
    Help,
    Clear,
    Exit,
    Unknown(&'a str),
    Said(&'a str),
}

fn parse(line: &str) -> Input<'_> {
    match line.trim() {
        "" => Input::Nothing,
        "/help" | "/?" => Input::Help,
        "/clear" => Input::Clear,
        "/exit" | "/quit" | "/bye" => Input::Exit,
        // A path or a telemetry line may begin with a slash; a lone word is a mistyped command.
        word if word.starts_with('/') && !word[1..].contains(['/', ' ']) => Input::Unknown(word),
        text => Input::Said(text),
    }
}

/// Talks until the user ends it.
pub(super) fn talk(session: &mut Session, start: Conversation, stats: bool) -> Result<(), CliError> {
    let mut lines = Lines::new(session)?;
    talk::say("/help lists commands, Ctrl-C ends an answer, Ctrl-D ends the conversation");
    let mut conversation = start.clone();
    while let Some(line) = lines.next()? {
        match parse(&line) {
            Input::Nothing => {}
            Input::Help => talk::say(HELP),
            Input::Clear => {
                conversation = start.clone();
                talk::say("the conversation is forgotten");
            }
            Input::Exit => break,
            Input::Unknown(word) => talk::say(format_args!("{word} is no command; /help lists them")),
            Input::Said(text) => {
                let mut next = conversation.clone();
                match answer(session, &mut next, text, stats) {
                    Ok(()) => conversation = next,
                    Err(error) if error.is_broken_pipe() => return Err(error),
                    // The conversation stays as it was, so the user can try something else.
                    Err(error) => {
                        error.report();
                        talk::say("/clear forgets the conversation so far");
                    }
                }
            }
        }
    }
    Ok(())
}

fn answer(session: &mut Session, to: &mut Conversation, text: &str, stats: bool) -> Result<(), CliError> {
    let tokens = session.tokens_after(to, text)?;
    let answer = session.generate(tokens, &mut |text| talk::write(text.as_bytes()))?;
    talk::write(if answer.text.ends_with('\n') { b"\n" } else { b"\n\n" })?;
    if answer.reason == FinishReason::Cancelled {
        talk::say("(interrupted)");
    }
    if answer.reason == FinishReason::Length {
        talk::say("(the answer was cut: the limit of tokens is reached)");
    }
    if stats {
        talk::say(report::line(&answer, None));
    }
    to.answered(&answer);
    answer.check()
}

/// Where lines come from: an editor on a terminal, plain lines where the output goes elsewhere.
enum Lines {
    Editor(Box<DefaultEditor>),
    Plain,
}

impl Lines {
    /// With an editor, Ctrl-C at the prompt is a key, and a signal only while an answer is coming. Without, it ends the
    /// program as it does elsewhere.
    fn new(session: &Session) -> Result<Self, CliError> {
        if !io::stdout().is_terminal() {
            return Ok(Lines::Plain);
        }
        ctrlc::set_handler(session.interrupter())?;
        Ok(Lines::Editor(Box::new(DefaultEditor::new()?)))
    }

    /// What the user typed, lines that were continued joined; `None` at the end.
    fn next(&mut self) -> Result<Option<String>, CliError> {
        let mut whole = String::new();
        loop {
            let prompt = if whole.is_empty() { PROMPT } else { "  " };
            let Some(line) = self.line(prompt)? else { return Ok(None) };
            match line.strip_suffix('\\') {
                Some(start) => whole = whole + start + "\n",
                None => {
                    whole += &line;
                    break;
                }
            }
        }
        if let Lines::Editor(editor) = self {
            // A history that is full or refuses a line only makes the arrow keys remember less.
            let _ = editor.add_history_entry(&whole);
        }
        Ok(Some(whole))
    }

    fn line(&mut self, prompt: &str) -> Result<Option<String>, CliError> {
        match self {
            Lines::Editor(editor) => match editor.readline(prompt) {
                Ok(line) => Ok(Some(line)),
                Err(ReadlineError::Interrupted) => {
                    talk::say("Ctrl-D or /exit ends the conversation");
                    Ok(Some(String::new()))
                }
                Err(ReadlineError::Eof) => Ok(None),
                Err(error) => Err(error.into()),
            },
            Lines::Plain => {
                let mut err = io::stderr();
                let _ = write!(err, "{prompt}").and_then(|()| err.flush());
                let mut line = String::new();
                let read = io::stdin().lock().read_line(&mut line)?;
                Ok((read > 0).then(|| line.trim_end_matches(['\n', '\r']).to_owned()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_commands_or_said() {
        for (line, expected) in [
            ("  ", Input::Nothing),
            ("/help", Input::Help),
            (" /clear ", Input::Clear),
            ("/exit", Input::Exit),
            ("/ex", Input::Unknown("/ex")),
            ("/etc/passwd is what?", Input::Said("/etc/passwd is what?")),
            ("hello ", Input::Said("hello")),
        ] {
            assert_eq!(parse(line), expected, "{line}");
        }
    }
}
