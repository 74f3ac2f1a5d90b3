//! What the model is made of, in words.

use super::super::facts::model::{
    AttentionLayers, Experts, FeedForwardKind, LatentVectors, Layers, Model, Part, Range, Rotary, States,
};
use super::Page;
use stdx::units::{Bytes, Count};

/// Columns of a pattern before it goes on in the next line.
const PATTERN_WIDTH: usize = 80;
/// Different feed-forward parts that get a line each; of more the widths are told.
const KINDS_SHOWN: usize = 3;

pub(super) fn parameters(all: u64, model: &Model) -> String {
    match model.feed_forward.kinds.iter().any(|kind| kind.experts.is_some()) {
        true => format!("{}, of which a token goes through {}", Count(all), Count(model.active_parameters)),
        false => Count(all).to_string(),
    }
}

pub(super) fn add(page: &mut Page, model: &Model, width: usize) {
    page.heading("Layers");
    add_layers(page, &model.layers, width);
    if let Some(attention) = &model.attention {
        page.line("attention", heads(attention));
    }
    for state in &model.states {
        page.line("states", of_state(state));
    }
    add_positions(page, model);
    add_feed_forward(page, model);
    page.heading("Parameters");
    for part in &model.parameters_by_part {
        page.line(part.part, of_part(part));
        if part.part == "embedding" && model.output_is_tied {
            page.line("output", "the embedding's");
        }
    }
    if !model.unusual.is_empty() {
        page.heading("Unusual");
    }
    for remark in &model.unusual {
        page.sentence(&super::escaped(remark));
    }
}

fn add_layers(page: &mut Page, layers: &Layers, width: usize) {
    let count = layers.count;
    if let [kind] = &layers.kinds[..] {
        page.line("layers", format!("{count} of width {width}; each {}", kind.explanation));
        return;
    }
    page.line("layers", format!("{count} of width {width}"));
    add_pattern(page, "pattern", &layers.pattern);
    for kind in &layers.kinds {
        page.line("", format!("{} ({}): {}", kind.name, counted(kind.layers, "layer"), kind.explanation));
    }
}

/// A pattern, on several lines where it is long.
fn add_pattern(page: &mut Page, name: &str, pattern: &str) {
    const BETWEEN: &str = ", then ";
    let mut line = String::new();
    let mut name = name;
    for group in pattern.split(BETWEEN) {
        if !line.is_empty() && line.len() + BETWEEN.len() + group.len() > PATTERN_WIDTH {
            page.line(std::mem::take(&mut name), line + ", then");
            line = group.to_owned();
            continue;
        }
        line = if line.is_empty() { group.to_owned() } else { line + BETWEEN + group };
    }
    page.line(name, line);
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn heads(attention: &AttentionLayers) -> String {
    let AttentionLayers { heads, kv_heads, head_dim, .. } = attention;
    if let Some(LatentVectors { rank, query_rank, rotary_dim, value_dim }) = &attention.latent {
        let queries = query_rank.map_or(String::new(), |rank| format!("; queries by way of {rank}"));
        return format!(
            "{} of {}, values of {value_dim}; {rank} + {rotary_dim} elements kept for all heads{queries}",
            heads_of(*heads),
            range(*head_dim),
        );
    }
    let norms = match attention.query_key_norms {
        "each head" => "; a norm on each head of queries and keys",
        "all heads at once" => "; a norm over all heads of queries, and of keys",
        _ => "",
    };
    let (heads, head_dim, kv_heads) = (heads_of(*heads), range(*head_dim), range(*kv_heads));
    format!("{heads} of {head_dim}, {kv_heads} for keys and values{norms}")
}

fn heads_of(heads: Range) -> String {
    format!("{} head{}", range(heads), if heads.max == 1 { "" } else { "s" })
}

fn range(Range { min, max }: Range) -> String {
    if min == max { min.to_string() } else { format!("{min} to {max}") }
}

fn of_state(state: &States) -> String {
    let States { kind, convolution_tokens, heads, key_dim, value_dim, .. } = state;
    match heads {
        0 => format!("{kind} over {convolution_tokens} tokens"),
        _ => format!(
            "{kind}: {} with a state of {key_dim} x {value_dim} each, convolution over {convolution_tokens} tokens",
            counted(*heads, "head")
        ),
    }
}

fn add_positions(page: &mut Page, model: &Model) {
    let rotary = &model.positions.rotary;
    let differ = rotary.len() > 1 || model.positions.layers_without > 0;
    for (i, rope) in rotary.iter().enumerate() {
        let layers = if differ { rope.layer_kinds.join(", ") + ": " } else { String::new() };
        page.line(if i == 0 { "positions" } else { "" }, format!("{layers}{}", turned(rope)));
    }
    let positions = &model.positions;
    match (positions.learned, positions.by_distance) {
        (true, _) => page.line("positions", "learned, an embedding for each"),
        (_, true) => page.line("positions", "by distance: scores fall with it (ALiBi)"),
        _ if rotary.is_empty() && model.attention.is_some() => page.line("positions", "none"),
        _ => {}
    }
}

fn turned(rope: &Rotary) -> String {
    let dims = match rope.dims == rope.head_dim {
        true => format!("all {} elements of a head", rope.dims),
        false => format!("{} of {} elements of a head", rope.dims, rope.head_dim),
    };
    let factor = rope.scaling_factor.unwrap_or(1.0);
    let original = rope.original_context_tokens.unwrap_or(0);
    let scaling = match rope.scaling {
        "linear" => format!(", stretched {factor} times"),
        "yarn" => format!(", stretched {factor} times from {original} tokens by YaRN"),
        "llama3" => ", factors from the file as in Llama 3".to_owned(),
        "longrope" => format!(", factors from the file, others beyond {original} tokens (longrope)"),
        _ => String::new(),
    };
    format!("rotary, base {}, {dims}{scaling}", rope.base)
}

fn add_feed_forward(page: &mut Page, model: &Model) {
    let feed_forward = &model.feed_forward;
    let kinds: Vec<&FeedForwardKind> =
        feed_forward.kinds.iter().filter(|kind| kind.function.is_some()).collect();
    match (&kinds[..], feed_forward.kinds.len()) {
        ([], _) => page.line("feed-forward", "none"),
        ([kind], 1) => page.line("feed-forward", of_kind(kind)),
        (_, 2..=KINDS_SHOWN) => {
            add_pattern(page, "feed-forward", &feed_forward.pattern);
            kinds.iter().for_each(|kind| page.line("", of_kind(kind)));
        }
        _ => {
            let widths = kinds.iter().map(|kind| kind.width);
            let (min, max) = (widths.clone().min().unwrap_or(0), widths.max().unwrap_or(0));
            page.line("feed-forward", format!("{} kinds, {min} to {max} wide", kinds.len()));
        }
    }
}

fn of_kind(kind: &FeedForwardKind) -> String {
    let function = kind.function.unwrap_or_default();
    let Some(experts) = &kind.experts else { return format!("{function} of width {}", kind.width) };
    let Experts { count, used, shared_width, router, .. } = experts;
    let shared =
        shared_width.map_or(String::new(), |width| format!("; a shared one of width {width} for all"));
    let groups = match (experts.groups, experts.groups_used) {
        (Some(groups), Some(used)) => format!(" from the best {used} of {groups} groups"),
        _ => String::new(),
    };
    let experts = counted(*count, "expert");
    format!(
        "{experts} of width {} ({function}), {used} for a token, chosen by {router}{groups}{shared}",
        kind.width
    )
}

fn of_part(part: &Part) -> String {
    let active = match part.active_parameters {
        active if active == part.parameters || active == 0 => String::new(),
        active => format!("   {} for a token", Count(active)),
    };
    format!(
        "{:>8} {:>6.1} % {:>11}{active}",
        Count(part.parameters).to_string(),
        part.share * 100.0,
        Bytes(part.bytes).to_string()
    )
}
