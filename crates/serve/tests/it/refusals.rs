//! What is refused, and in which words.

use crate::client::{Client, Running, config, start, start_with};
use crate::fake::Script;

/// Posts `body` and compares status, `param`, `code` and message.
async fn check(running: &Running, path: &str, body: &str, expected: (u16, Option<&str>, Option<&str>, &str)) {
    let response = running.connect().await.post(path, body.as_bytes()).await;
    let json = response.json();
    let error = &json["error"];
    let found = (
        response.status,
        error["param"].as_str(),
        error["code"].as_str(),
        error["message"].as_str().unwrap_or_default(),
    );
    assert_eq!(found, expected, "{path} {body}");
    assert_eq!(error.as_object().unwrap().len(), 4, "message, type, param and code: {error}");
    assert_eq!(response.header("content-type"), Some("application/json"));
}

const INVALID: Option<&str> = Some("invalid_value");
const TYPE: Option<&str> = Some("invalid_type");
const UNSUPPORTED: Option<&str> = Some("unsupported_parameter");

#[tokio::test]
async fn bodies_that_are_no_requests() {
    let running = start(Script::default()).await;
    for path in ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize", "/apply-template"] {
        let not_json = Some("invalid_json");
        for (body, code, message) in [
            ("", None, "the body is empty; send a JSON object"),
            ("[]", None, "the body must be a JSON object, not an array"),
            ("null", None, "the body must be a JSON object, not null"),
            ("7", None, "the body must be a JSON object, not a number"),
            ("{", not_json, "the body is not valid JSON: EOF while parsing an object at line 1 column 1"),
            ("{\"a\":1,\n\"b\"}", not_json, "the body is not valid JSON: expected `:` at line 2 column 4"),
            ("{\"a\":NaN}", not_json, "the body is not valid JSON: expected value at line 1 column 6"),
            ("{} {}", not_json, "the body is not valid JSON: trailing characters at line 1 column 4"),
        ] {
            check(&running, path, body, (400, None, code, message)).await;
        }
        let response = running.connect().await.post(path, b"{\"a\":\"\xff\"}").await;
        assert_eq!(response.json()["error"]["message"], "the body is not valid UTF-8 at byte 6");
    }
}

#[tokio::test]
async fn fields_that_chat_and_text_share() {
    let running = start(Script::default()).await;
    let long = format!("\"stop\":\"{}\"", "x".repeat(1025));
    let many = format!("\"stop\":[{}\"x\"]", "\"x\",".repeat(16));
    let constrained =
        "'response_format.type' 'json_schema' is not supported yet: answers cannot be constrained";
    for (fields, param, code, message) in [
        ("\"temperature\":\"hot\"", "temperature", TYPE, "'temperature' must be a number, not a string"),
        ("\"temperature\":2.1", "temperature", INVALID, "'temperature' must be between 0 and 2"),
        ("\"temperature\":-1", "temperature", INVALID, "'temperature' must be between 0 and 2"),
        ("\"temperature\":1e999", "temperature", INVALID, "'temperature' must be between 0 and 2"),
        ("\"top_p\":1.01", "top_p", INVALID, "'top_p' must be between 0 and 1"),
        ("\"min_p\":[]", "min_p", TYPE, "'min_p' must be a number, not an array"),
        ("\"top_k\":1.5", "top_k", INVALID, "'top_k' must be an integer"),
        ("\"top_k\":-2", "top_k", INVALID, "'top_k' must be between -1 and 4294967295"),
        (
            "\"presence_penalty\":3",
            "presence_penalty",
            INVALID,
            "'presence_penalty' must be between -2 and 2",
        ),
        (
            "\"frequency_penalty\":{}",
            "frequency_penalty",
            TYPE,
            "'frequency_penalty' must be a number, not an object",
        ),
        ("\"repeat_penalty\":0", "repeat_penalty", INVALID, "'repeat_penalty' must be between 0.01 and 10"),
        ("\"seed\":1.5", "seed", INVALID, "'seed' must be an integer of 64 bits"),
        ("\"seed\":99999999999999999999", "seed", INVALID, "'seed' must be an integer of 64 bits"),
        ("\"n\":0", "n", INVALID, "'n' must be between 1 and 16"),
        ("\"n\":17", "n", INVALID, "'n' must be between 1 and 16"),
        ("\"n\":\"2\"", "n", TYPE, "'n' must be a number, not a string"),
        ("\"best_of\":3", "best_of", UNSUPPORTED, "'best_of' is not supported, unless it equals 'n'"),
        ("\"max_tokens\":0", "max_tokens", INVALID, "'max_tokens' must be at least 1"),
        ("\"max_tokens\":-2", "max_tokens", INVALID, "'max_tokens' must be at least 1"),
        (
            "\"max_completion_tokens\":true",
            "max_completion_tokens",
            TYPE,
            "'max_completion_tokens' must be a number, not a boolean",
        ),
        ("\"stream\":1", "stream", TYPE, "'stream' must be a boolean, not a number"),
        (
            "\"stream_options\":true",
            "stream_options",
            TYPE,
            "'stream_options' must be an object, not a boolean",
        ),
        (
            "\"stream_options\":{\"include_usage\":1}",
            "stream_options.include_usage",
            TYPE,
            "'stream_options.include_usage' must be a boolean, not a number",
        ),
        ("\"ignore_eos\":\"yes\"", "ignore_eos", TYPE, "'ignore_eos' must be a boolean, not a string"),
        ("\"model\":7", "model", TYPE, "'model' must be a string, not a number"),
        ("\"stop\":7", "stop", TYPE, "'stop' must be a string or an array, not a number"),
        (
            "\"stop\":[7]",
            "stop",
            INVALID,
            "'stop' cannot be read: invalid type: integer `7`, expected a string",
        ),
        (&long, "stop", INVALID, "'stop' has a string of more than 1024 bytes"),
        (&many, "stop", INVALID, "'stop' has more than 16 elements"),
        ("\"logit_bias\":{\"a\":1}", "logit_bias", INVALID, "'logit_bias' must be keyed by token ids"),
        (
            "\"logit_bias\":{\"1\":101}",
            "logit_bias",
            INVALID,
            "'logit_bias' must have biases between -100 and 100",
        ),
        (
            "\"logit_bias\":[[1]]",
            "logit_bias",
            INVALID,
            "'logit_bias' must be an object, or an array of pairs of a token id and a bias",
        ),
        (
            "\"logit_bias\":{\"1000\":1}",
            "logit_bias",
            INVALID,
            "'logit_bias' names a token outside of the vocabulary",
        ),
        (
            "\"response_format\":\"json\"",
            "response_format",
            TYPE,
            "'response_format' must be an object, not a string",
        ),
        ("\"response_format\":{\"type\":\"json_schema\"}", "response_format.type", UNSUPPORTED, constrained),
        (
            "\"response_format\":{\"type\":\"xml\"}",
            "response_format.type",
            INVALID,
            "'response_format.type' must be 'text'",
        ),
        (
            "\"grammar\":\"root ::= x\"",
            "grammar",
            UNSUPPORTED,
            "'grammar' is not supported yet: answers cannot be constrained",
        ),
    ] {
        let chat = format!("{{\"messages\":[{{\"role\":\"user\",\"content\":\"x\"}}],{fields}}}");
        check(&running, "/v1/chat/completions", &chat, (400, Some(param), code, message)).await;
        let text = format!("{{\"prompt\":\"x\",{fields}}}");
        check(&running, "/v1/completions", &text, (400, Some(param), code, message)).await;
    }
}

#[tokio::test]
async fn fields_of_chats() {
    let running = start(Script::default()).await;
    let user = "\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]";
    let with = |fields: &str| format!("{user},{fields}");
    let content = |content: &str| format!("\"messages\":[{{\"role\":\"user\",\"content\":{content}}}]");
    let deep = format!("\"messages\":[{}1{}]", "[".repeat(200), "]".repeat(200));
    for (fields, param, code, message) in [
        (String::new(), "messages", INVALID, "'messages' is missing"),
        ("\"messages\":null".into(), "messages", INVALID, "'messages' is missing"),
        ("\"messages\":\"x\"".into(), "messages", TYPE, "'messages' must be an array, not a string"),
        ("\"messages\":[]".into(), "messages", INVALID, "'messages' must have at least one message"),
        ("\"messages\":[7]".into(), "messages[0]", TYPE, "'messages[0]' must be an object, not a number"),
        (
            "\"messages\":[{\"content\":\"x\"}]".into(),
            "messages[0].role",
            INVALID,
            "'messages[0].role' is missing",
        ),
        (
            "\"messages\":[{\"role\":\"pope\",\"content\":\"x\"}]".into(),
            "messages[0].role",
            INVALID,
            "'messages[0].role' must be one of system, user, assistant, tool, function",
        ),
        (
            "\"messages\":[{\"role\":\"user\"}]".into(),
            "messages[0].content",
            INVALID,
            "'messages[0].content' is missing",
        ),
        (
            content("7"),
            "messages[0].content",
            TYPE,
            "'messages[0].content' must be a string or an array, not a number",
        ),
        (
            content("[7]"),
            "messages[0].content[0]",
            TYPE,
            "'messages[0].content[0]' must be an object, not a number",
        ),
        (
            content(
                "[{\"type\":\"text\",\"text\":\"a\"},{\"type\":\"image_url\",\"image_url\":{\"url\":\"data:\"}}]",
            ),
            "messages[0].content[1].type",
            UNSUPPORTED,
            "'messages[0].content[1].type' 'image_url' is not supported: this model reads text only",
        ),
        (
            content("[{\"type\":\"text\"}]"),
            "messages[0].content[0].text",
            TYPE,
            "'messages[0].content[0].text' must be a string, not null",
        ),
        (
            content("\"\\ud800\""),
            "messages",
            INVALID,
            "'messages' cannot be read: unexpected end of hex escape",
        ),
        (deep, "messages", INVALID, "'messages' cannot be read: recursion limit exceeded"),
        (
            "\"messages\":[{\"role\":\"function\",\"content\":\"x\"}]".into(),
            "messages",
            Some("template_error"),
            "'messages' cannot be put into the model's template: conversation roles must alternate",
        ),
        (with("\"logprobs\":5"), "logprobs", TYPE, "'logprobs' must be a boolean, not a number"),
        (with("\"top_logprobs\":2"), "top_logprobs", INVALID, "'top_logprobs' needs 'logprobs' to be true"),
        (
            with("\"logprobs\":true,\"top_logprobs\":21"),
            "top_logprobs",
            INVALID,
            "'top_logprobs' must be between 0 and 20",
        ),
        (with("\"tools\":{}"), "tools", TYPE, "'tools' must be an array, not an object"),
        (
            with("\"tools\":[{\"type\":\"retrieval\"}]"),
            "tools[0].type",
            INVALID,
            "'tools[0].type' must be 'function'",
        ),
        (
            with("\"tools\":[{\"type\":\"function\"}]"),
            "tools[0].function.name",
            TYPE,
            "'tools[0].function.name' must be a string, not null",
        ),
        (
            with("\"tool_choice\":\"required\""),
            "tool_choice",
            UNSUPPORTED,
            "'tool_choice' cannot be forced yet; use 'auto' or 'none'",
        ),
        (
            with("\"functions\":[]"),
            "functions",
            UNSUPPORTED,
            "'functions' is not supported; use 'tools' and 'tool_choice'",
        ),
    ] {
        let body = format!("{{{fields}}}");
        check(&running, "/v1/chat/completions", &body, (400, Some(param), code, message)).await;
    }
    let long = format!("{{{}}}", content(&format!("\"{}\"", "x".repeat(600))));
    let message = "the prompt has 619 tokens and the context holds 512; shorten it";
    let expected = (400, Some("messages"), Some("context_length_exceeded"), message);
    check(&running, "/v1/chat/completions", &long, expected).await;
    let body = format!("{{\"model\":\"gpt-5\",{user}}}");
    let message = "the model 'gpt-5' is not served here; 'shore/dunlin-1b' is";
    check(&running, "/v1/chat/completions", &body, (404, Some("model"), Some("model_not_found"), message))
        .await;
}

#[tokio::test]
async fn fields_of_text_completions() {
    let running = start(Script::default()).await;
    let prompts = format!("\"prompt\":[{}\"x\"]", "\"x\",".repeat(64));
    let long = format!("\"prompt\":\"{}\"", "x".repeat(511));
    let exceeded = "the prompt has 512 tokens and the context holds 512; shorten it";
    for (fields, param, code, message) in [
        ("", "prompt", INVALID, "'prompt' is missing"),
        ("\"prompt\":7", "prompt", TYPE, "'prompt' must be a string or an array, not a number"),
        ("\"prompt\":[]", "prompt", INVALID, "'prompt' must have at least one element"),
        ("\"prompt\":[[]]", "prompt", INVALID, "'prompt' has no tokens"),
        (
            "\"prompt\":[\"a\",1]",
            "prompt",
            INVALID,
            "'prompt' cannot be read: invalid type: integer `1`, expected a string",
        ),
        (
            "\"prompt\":[1,-1]",
            "prompt",
            INVALID,
            "'prompt' cannot be read: invalid value: integer `-1`, expected u32",
        ),
        (
            "\"prompt\":[1,1000]",
            "prompt",
            INVALID,
            "'prompt' has the token 1000, but the vocabulary ends at 1000",
        ),
        (
            "\"prompt\":[1,1000],\"echo\":true",
            "prompt",
            INVALID,
            "'prompt' has 1000, which is no token of the model",
        ),
        (&prompts, "prompt", INVALID, "'prompt' has more than 64 elements"),
        (&long, "prompt", Some("context_length_exceeded"), exceeded),
        (
            "\"prompt\":\"x\",\"suffix\":\"y\"",
            "suffix",
            UNSUPPORTED,
            "'suffix' is not supported: text is continued, not filled in",
        ),
        (
            "\"prompt\":\"x\",\"logprobs\":true",
            "logprobs",
            TYPE,
            "'logprobs' must be a number, not a boolean",
        ),
        (
            "\"prompt\":\"x\",\"logprobs\":1,\"echo\":true",
            "logprobs",
            UNSUPPORTED,
            "'logprobs' is not supported together with 'echo': prompts have no log-probabilities yet",
        ),
    ] {
        check(&running, "/v1/completions", &format!("{{{fields}}}"), (400, Some(param), code, message)).await;
    }
}

#[tokio::test]
async fn more_generations_than_can_ever_be_queued() {
    let mut config = config();
    config.limits.generations_max = 12;
    let running = start_with(Script::default(), config).await;
    for (prompts, n, refused) in [
        (12, 1, None),
        (3, 4, None),
        (13, 1, Some(("prompt", "'prompt' asks for 13 generations; a request may have 12"))),
        (4, 4, Some(("n", "'n' asks for 4 x 4 = 16 generations; a request may have 12"))),
    ] {
        let prompts = vec!["x"; prompts];
        let body = serde_json::json!({"prompt": prompts, "n": n, "max_tokens": 1}).to_string();
        match refused {
            Some((param, message)) => {
                check(&running, "/v1/completions", &body, (400, Some(param), INVALID, message)).await;
            }
            None => assert_eq!(running.post("/v1/completions", &body).await.status, 200, "{body}"),
        }
    }
    let chat = "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"n\":13}";
    let message = "'n' asks for 1 x 13 = 13 generations; a request may have 12";
    check(&running, "/v1/chat/completions", chat, (400, Some("n"), INVALID, message)).await;
}

#[tokio::test]
async fn an_idle_server_refuses_no_request_because_of_its_queue() {
    let running = start(Script::default()).await;
    for (prompts, n, status) in [(64, 1, 200), (4, 16, 200), (32, 16, 400), (5, 13, 400)] {
        let body = serde_json::json!({"prompt": vec!["x"; prompts], "n": n, "max_tokens": 1});
        assert_eq!(running.post("/v1/completions", body).await.status, status, "{prompts} x {n}");
    }
}

#[tokio::test]
async fn fields_of_tokenizing() {
    let running = start(Script::default()).await;
    for (path, body, param, code, message) in [
        ("/tokenize", "{}", "content", INVALID, "'content' is missing"),
        ("/tokenize", "{\"content\":1}", "content", TYPE, "'content' must be a string, not a number"),
        (
            "/tokenize",
            "{\"content\":\"\",\"add_special\":1}",
            "add_special",
            TYPE,
            "'add_special' must be a boolean, not a number",
        ),
        ("/detokenize", "{}", "tokens", INVALID, "'tokens' is missing"),
        (
            "/detokenize",
            "{\"tokens\":[1000]}",
            "tokens",
            INVALID,
            "'tokens' has 1000, which is no token of the model",
        ),
        (
            "/detokenize",
            "{\"tokens\":[\"a\"]}",
            "tokens",
            INVALID,
            "'tokens' cannot be read: invalid type: string \"a\", expected u32",
        ),
    ] {
        check(&running, path, body, (400, Some(param), code, message)).await;
    }
}

#[tokio::test]
async fn routes_methods_and_content_types() {
    let running = start(Script::default()).await;
    async fn check(
        mut client: Client,
        method: &str,
        path: &str,
        content_type: &str,
        expected: (u16, &str, &str),
    ) {
        let response = client.send(method, path, &[("content-type", content_type)], b"{}").await;
        let json = response.json();
        let error = &json["error"];
        let found = (response.status, error["code"].as_str().unwrap(), error["message"].as_str().unwrap());
        assert_eq!(found, expected, "{method} {path} {content_type}");
        assert_eq!(response.header("allow").is_some(), response.status == 405);
    }
    let json = "application/json";
    for (method, path, content_type, expected) in [
        ("GET", "/v2", json, (404, "unknown_url", "there is nothing at GET /v2")),
        ("POST", "/v1/chat", json, (404, "unknown_url", "there is nothing at POST /v1/chat")),
        (
            "GET",
            "/v1/models/gpt-5",
            json,
            (404, "model_not_found", "the model 'gpt-5' is not served here; 'shore/dunlin-1b' is"),
        ),
        (
            "GET",
            "/v1/completions",
            json,
            (405, "method_not_allowed", "/v1/completions does not answer to GET"),
        ),
        ("POST", "/health", json, (405, "method_not_allowed", "/health does not answer to POST")),
        ("DELETE", "/v1/models", json, (405, "method_not_allowed", "/v1/models does not answer to DELETE")),
        (
            "POST",
            "/tokenize",
            "text/plain",
            (
                415,
                "unsupported_media_type",
                "the content type 'text/plain' is not understood; send 'Content-Type: application/json'",
            ),
        ),
    ] {
        check(running.connect().await, method, path, content_type, expected).await;
    }
    let mut client = running.connect().await;
    for content_type in ["application/json", "Application/JSON; charset=utf-8", "application/vnd.api+json"] {
        let response =
            client.send("POST", "/tokenize", &[("content-type", content_type)], b"{\"content\":\"a\"}").await;
        assert_eq!((response.status, response.text()), (200, "{\"tokens\":[97]}"), "{content_type}");
    }
    assert_eq!(client.send("POST", "/tokenize", &[], b"{\"content\":\"a\"}").await.status, 200);
}
