//! The one loop under BPE and SPM: while some pair of neighbours can merge, merge the best one, leftmost first.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A stretch of a word that is one symbol now.
#[derive(Clone, Copy, Debug)]
pub(super) struct Symbol {
    pub start: u32,
    pub len: u32,
    /// The token, or [`NO_TOKEN`] if no token is spelled so.
    pub id: u32,
}

pub(super) const NO_TOKEN: u32 = u32::MAX;

/// What a pair would become. The lowest cost merges first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Merge {
    pub cost: u32,
    pub id: u32,
}

/// Up to here, looking at every pair for each merge beats keeping a queue.
const SCAN_SYMBOLS_MAX: usize = 40;

/// Space that is used again from word to word.
#[derive(Debug, Default)]
pub(super) struct Workspace {
    pairs: Vec<Option<Merge>>,
    links: Vec<Link>,
    queue: BinaryHeap<Reverse<Candidate>>,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    previous: u32,
    next: u32,
}

const END: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    cost: u32,
    left: u32,
    right: u32,
    /// Length of both; another length now means that one of them has merged since.
    len: u32,
    id: u32,
}

/// Merges in place, in O(n log n) for n symbols. `pair` says what two neighbours become.
pub(super) fn merge(
    symbols: &mut Vec<Symbol>,
    space: &mut Workspace,
    pair: &mut impl FnMut(Symbol, Symbol) -> Option<Merge>,
) {
    if symbols.len() <= SCAN_SYMBOLS_MAX {
        merge_by_scan(symbols, &mut space.pairs, pair);
    } else {
        merge_by_queue(symbols, space, pair);
    }
}

fn merge_by_scan(
    symbols: &mut Vec<Symbol>,
    pairs: &mut Vec<Option<Merge>>,
    pair: &mut impl FnMut(Symbol, Symbol) -> Option<Merge>,
) {
    pairs.clear();
    pairs.extend(symbols.windows(2).map(|two| pair(two[0], two[1])));
    loop {
        let mut best: Option<(usize, Merge)> = None;
        for (i, merge) in pairs.iter().enumerate() {
            if let Some(merge) = merge
                && best.is_none_or(|(_, b)| merge.cost < b.cost)
            {
                best = Some((i, *merge));
            }
        }
        let Some((i, merge)) = best else { return };
        symbols[i].len += symbols[i + 1].len;
        symbols[i].id = merge.id;
        symbols.remove(i + 1);
        pairs.remove(i);
        if i > 0 {
            pairs[i - 1] = pair(symbols[i - 1], symbols[i]);
        }
        if i < pairs.len() {
            pairs[i] = pair(symbols[i], symbols[i + 1]);
        }
    }
}

fn merge_by_queue(
    symbols: &mut Vec<Symbol>,
    space: &mut Workspace,
    pair: &mut impl FnMut(Symbol, Symbol) -> Option<Merge>,
) {
    let Workspace { links, queue, .. } = space;
    let count = symbols.len() as u32;
    links.clear();
    links.extend((0..count).map(|i| Link {
        previous: i.checked_sub(1).unwrap_or(END),
        next: if i + 1 < count { i + 1 } else { END },
    }));
    queue.clear();
    let mut enqueue = |queue: &mut BinaryHeap<_>, symbols: &[Symbol], left: u32, right: u32| {
        if left == END || right == END {
            return;
        }
        let (a, b) = (symbols[left as usize], symbols[right as usize]);
        if let Some(Merge { cost, id }) = pair(a, b) {
            queue.push(Reverse(Candidate { cost, left, right, len: a.len + b.len, id }));
        }
    };
    for i in 1..count {
        enqueue(queue, symbols, i - 1, i);
    }
    while let Some(Reverse(candidate)) = queue.pop() {
        let (left, right) = (candidate.left as usize, candidate.right as usize);
        let (a, b) = (symbols[left], symbols[right]);
        if a.len == 0 || b.len == 0 || a.len + b.len != candidate.len {
            continue;
        }
        symbols[left].len = candidate.len;
        symbols[left].id = candidate.id;
        symbols[right].len = 0;
        let next = links[right].next;
        links[left].next = next;
        if next != END {
            links[next as usize].previous = candidate.left;
        }
        enqueue(queue, symbols, links[left].previous, candidate.left);
        enqueue(queue, symbols, candidate.left, next);
    }
    symbols.retain(|symbol| symbol.len > 0);
}
