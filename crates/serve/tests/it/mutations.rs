//! Damaged requests: nothing panics, nothing takes more memory than stated, and the server goes on.

use engine::model::Purpose;
use serve::chat::ChatRequest;
use serve::completions::CompletionRequest;
use serve::embeddings::EmbeddingRequest;
use serve::rerank::RerankRequest;
use serve::{Limits, parse_bytes_max};

use crate::allocations::peak;
use crate::client::start;
use crate::fake::Script;

const SEED: u64 = 0x5eed_0f5e_a5ea;
const MUTATIONS: u32 = 100_000;
const THROUGH_THE_SERVER: u32 = 3_000;

const EXAMPLES: &[&str] = &[
    r#"{"model":"dunlin","messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"Hi \u00e9\ud83d\ude00"}],"temperature":0.7,"max_tokens":16,"stream":true,"stream_options":{"include_usage":true}}"#,
    r#"{"messages":[{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}],"n":2,"seed":42,"stop":["\n","END"],"logprobs":true,"top_logprobs":3,"logit_bias":{"5":-100,"7":1.5}}"#,
    r#"{"messages":[{"role":"user","content":"x"},{"role":"assistant","content":null,"tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{\"a\":1}"}}]},{"role":"tool","tool_call_id":"1","content":"2"}],"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{"a":{"type":"integer"}}}}}],"tool_choice":"auto","chat_template_kwargs":{"enable_thinking":false},"response_format":{"type":"text"}}"#,
    r#"{"prompt":"Once upon a time","max_tokens":5,"logprobs":2,"presence_penalty":0.5,"frequency_penalty":-0.5,"top_k":40,"top_p":0.9,"min_p":0.05,"repeat_penalty":1.1,"repeat_last_n":64}"#,
    r#"{"prompt":["a","b"],"echo":true,"n":2,"best_of":2,"ignore_eos":true,"max_tokens":3,"user":"u","metadata":{"k":"v"}}"#,
    r#"{"prompt":[[1,2,3],[4,5]],"stream":true,"suffix":null,"logit_bias":[[1,-1],[2,false]],"max_tokens":4}"#,
    r#"{"prompt":[72,101,108,108,111],"max_completion_tokens":2,"stop":"x","seed":-7,"lora":[{"id":0,"scale":0.5}]}"#,
    r#"{"input":["a text","another"],"model":"dunlin","encoding_format":"base64","dimensions":3,"user":"u"}"#,
    r#"{"query":"which?","documents":["this","that",{"text":"neither"}],"top_n":2,"return_documents":true}"#,
];

/// What is put in place of a value.
const VALUES: &[&str] = &[
    "null",
    "true",
    "\"\"",
    "\"x\"",
    "[]",
    "{}",
    "0",
    "-1",
    "1e999",
    "-0.0",
    "1e-400",
    "18446744073709551616",
    "9223372036854775807",
    "123456789012345678901234567890123456789012345678901234567890",
    "[[[[[[]]]]]]",
    "[null,null]",
    "{\"type\":7}",
    "\"\\ud800\"",
    "\"\\u0000\"",
    "NaN",
    "Infinity",
    "[1,\"a\",[2]]",
];

/// xorshift64* (Vigna 2016).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() >> 33) as usize % end.max(1)
    }

    fn of<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }
}

fn mutate(random: &mut Random) -> Vec<u8> {
    let mut body = random.of(EXAMPLES).as_bytes().to_vec();
    for _ in 0..=random.below(3) {
        let at = random.below(body.len());
        match random.below(8) {
            0 => flip(&mut body, at, random.below(8)),
            1 => body.truncate(at),
            2 => replace_value(&mut body, at, random.of(VALUES).as_bytes()),
            3 => nest(&mut body, at, random.below(400)),
            4 => splice(&mut body, at, random),
            5 => drop(body.splice(at..at, [(random.next() & 0xff) as u8])),
            6 => drop(body.drain(at..(at + random.below(9)).min(body.len()))),
            _ => repeat_list(&mut body, at, random.below(2000)),
        }
    }
    body
}

fn flip(body: &mut [u8], at: usize, bit: usize) {
    if let Some(byte) = body.get_mut(at) {
        *byte ^= 1 << bit;
    }
}

/// Puts `value` in the place of the scalar that begins after the next colon or comma.
fn replace_value(body: &mut Vec<u8>, at: usize, value: &[u8]) {
    let Some(start) = body[at..].iter().position(|byte| b":,[".contains(byte)).map(|start| at + start + 1)
    else {
        return;
    };
    let length = body[start..].iter().position(|byte| b",]}".contains(byte)).unwrap_or(0);
    body.splice(start..start + length, value.iter().copied());
}

fn nest(body: &mut Vec<u8>, at: usize, depth: usize) {
    let nested = ["[".repeat(depth), "]".repeat(depth)].concat();
    replace_value(body, at, nested.as_bytes());
}

fn splice(body: &mut Vec<u8>, at: usize, random: &mut Random) {
    let other = random.of(EXAMPLES).as_bytes();
    let from = random.below(other.len());
    let to = from + random.below(other.len() - from);
    body.splice(at..at, other[from..to].iter().copied());
}

fn repeat_list(body: &mut Vec<u8>, at: usize, count: usize) {
    let list = format!("[{}0]", "{},[],\"\",".repeat(count));
    replace_value(body, at, list.as_bytes());
}

/// Reads a body in all ways, each within the stated memory. Returns how many ways it was valid.
#[track_caller]
fn read(body: &[u8], limits: &Limits) -> usize {
    let allowed = parse_bytes_max(body.len(), limits);
    let (chat, used) = peak(|| ChatRequest::read(body, limits).is_ok());
    assert!(used <= allowed, "chat: {used} bytes for {}, where {allowed} are stated", body.len());
    let (text, used) = peak(|| CompletionRequest::read(body, limits).is_ok());
    assert!(used <= allowed, "text: {used} bytes for {}, where {allowed} are stated", body.len());
    let (embed, used) = peak(|| EmbeddingRequest::read(body, limits).is_ok());
    assert!(used <= allowed, "embed: {used} bytes for {}, where {allowed} are stated", body.len());
    let (rank, used) = peak(|| RerankRequest::read(body, limits).is_ok());
    assert!(used <= allowed, "rank: {used} bytes for {}, where {allowed} are stated", body.len());
    [chat, text, embed, rank].into_iter().map(usize::from).sum()
}

#[test]
fn damaged_bodies_are_read_or_refused_within_bounds() {
    let limits = Limits::default();
    let mut random = Random(SEED);
    let (mut valid, mut bytes) = (0, 0);
    for number in 0..MUTATIONS {
        let body = mutate(&mut random);
        bytes += body.len();
        let result = std::panic::catch_unwind(|| read(&body, &limits));
        let Ok(ways) = result else {
            panic!("mutation {number} of seed {SEED:#x}: {}", String::from_utf8_lossy(&body));
        };
        valid += ways;
    }
    // Both outcomes must have been seen often, or the mutations test nothing.
    let share = valid as f64 / f64::from(MUTATIONS);
    assert!((0.02..0.9).contains(&share), "{valid} of {MUTATIONS} were valid, in {bytes} bytes");
}

#[test]
fn large_bodies_stay_within_bounds() {
    let limits = Limits::default();
    for (unit, count) in [
        ("[],", 1_000_000),
        ("{},", 1_000_000),
        ("\"\",", 1_000_000),
        ("1,", 2_000_000),
        ("{\"a\":{\"b\":1}},", 300_000),
        ("[", 1_000_000),
    ] {
        let list = format!("[{}0]", unit.repeat(count));
        for field in [
            "messages",
            "tools",
            "prompt",
            "stop",
            "logit_bias",
            "lora",
            "unknown",
            "response_format",
            "input",
            "documents",
        ] {
            read(format!("{{\"{field}\":{list}}}").as_bytes(), &limits);
        }
    }
    let many_fields: String = (0..200_000).map(|n| format!("\"k{n}\":0,")).collect();
    read(format!("{{{many_fields}\"prompt\":\"x\"}}").as_bytes(), &limits);
    let long = "x".repeat(4 << 20);
    assert_eq!(read(format!("{{\"prompt\":\"{long}\"}}").as_bytes(), &limits), 1);
    let parts = format!(
        "{{\"messages\":[{{\"role\":\"user\",\"content\":[{{\"type\":\"text\",\"text\":\"{long}\"}}]}}]}}"
    );
    assert_eq!(read(parts.as_bytes(), &limits), 1);
    let values = |unit: &str| format!("[{}0]", unit.repeat(30_000));
    for unit in ["{\"a\":1},", "[[]],", "\"\",1,"] {
        let list = values(unit);
        let body = format!(
            "{{\"messages\":[{{\"role\":\"user\",\"content\":\"x\",\"y\":{list}}}],\
             \"tools\":[{{\"type\":\"function\",\"function\":{{\"name\":\"f\"}},\"y\":{list}}}],\
             \"chat_template_kwargs\":{{\"y\":{list}}}}}"
        );
        assert_eq!(read(body.as_bytes(), &limits), 1);
    }
    let tokens = "7,".repeat(200_000);
    assert_eq!(read(format!("{{\"prompt\":[{tokens}7]}}").as_bytes(), &limits), 1);
}

#[tokio::test]
async fn damaged_bodies_through_the_server() {
    let paths = ["/v1/chat/completions", "/v1/completions", "/tokenize", "/apply-template"];
    go_through_the_server(Purpose::Generates, &paths).await;
    go_through_the_server(Purpose::Embeds, &["/v1/embeddings"]).await;
    go_through_the_server(Purpose::Scores, &["/v1/rerank"]).await;
}

async fn go_through_the_server(purpose: Purpose, paths: &[&str]) {
    let running = start(Script { running_max: 1000, purpose, ..Script::default() }).await;
    let mut random = Random(SEED);
    let mut client = running.connect().await;
    let mut seen = std::collections::BTreeMap::new();
    for number in 0..THROUGH_THE_SERVER {
        let body = mutate(&mut random);
        let path = random.of(paths);
        let response = client.post(path, &body).await;
        let status = response.status;
        assert!(
            matches!(status, 200 | 400 | 404),
            "{status} for {number} of {SEED:#x}: {}",
            String::from_utf8_lossy(&body)
        );
        *seen.entry(status).or_insert(0) += 1;
    }
    assert!(seen[&200] > 10 && seen[&400] > 50, "{seen:?}");
    assert_eq!(client.send("GET", "/health", &[], b"").await.status, 200);
}
