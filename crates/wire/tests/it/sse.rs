use wire::sse::{Event, ParseError, Parser, write_comment, write_done, write_json};

/// The events of `stream`, which must be the same however it is cut.
fn events(stream: &str) -> Vec<String> {
    let whole = parse([stream.as_bytes()]);
    for cut in 0..stream.len() {
        let (head, tail) = stream.as_bytes().split_at(cut);
        assert_eq!(parse([head, tail]), whole, "cut at {cut}");
    }
    whole
        .into_iter()
        .map(|event| event.name.map_or(event.data.clone(), |name| format!("{name}={}", event.data)))
        .collect()
}

fn parse<const N: usize>(pieces: [&[u8]; N]) -> Vec<Event> {
    let (mut parser, mut events) = (Parser::new(1024), Vec::new());
    for piece in pieces {
        parser.feed(piece, &mut events).unwrap();
    }
    events
}

#[test]
fn streams_become_events() {
    #[track_caller]
    fn check(stream: &str, expected: &[&str]) {
        assert_eq!(events(stream), expected);
    }
    check("", &[]);
    check("data: a\n\n", &["a"]);
    check("data: a", &[]);
    check("data:a\n\ndata:  b\n\n", &["a", " b"]);
    check("data: a\r\n\r\ndata: b\r\rdata: c\n\r\n", &["a", "b", "c"]);
    check("data: a\ndata: b\n\n", &["a\nb"]);
    check("data\n\n", &[""]);
    check(": wait\n\ndata: a\n\n", &["a"]);
    check("event: error\ndata: x\n\ndata: y\n\n", &["error=x", "y"]);
    check("event: nothing\n\nid: 3\nretry: 5\ndata: é\n\n", &["é"]);
    check("data: {\"a\":1}\n\ndata: [DONE]\n\n", &["{\"a\":1}", "[DONE]"]);
}

#[test]
fn what_is_written_is_what_is_parsed() {
    let mut out = Vec::new();
    write_comment(&mut out, "two\nlines").unwrap();
    write_json(&mut out, &"line\nbreak").unwrap();
    write_done(&mut out);
    let text = String::from_utf8(out).unwrap();
    assert_eq!(text, ": two lines\n\ndata: \"line\\nbreak\"\n\ndata: [DONE]\n\n");
    assert_eq!(events(&text), ["\"line\\nbreak\"", "[DONE]"]);
}

#[test]
fn an_endless_event_is_refused() {
    let (mut parser, mut events) = (Parser::new(16), Vec::new());
    let long = "data: 0123456789abcdef\n\n";
    assert_eq!(parser.feed(long.as_bytes(), &mut events), Err(ParseError::TooLong { limit: 16 }));
    let mut parser = Parser::new(16);
    let many = "data: 0123456\ndata: 0123456789\n";
    assert_eq!(parser.feed(many.as_bytes(), &mut events), Err(ParseError::TooLong { limit: 16 }));
    assert_eq!(events, []);
}

#[test]
fn bytes_that_are_no_text_are_refused() {
    assert_eq!(Parser::new(16).feed(b"data: \xff\n", &mut Vec::new()), Err(ParseError::NotUtf8));
}
