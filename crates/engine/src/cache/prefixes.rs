//! What sequences left behind: a tree of pages by the tokens that they hold, so that who begins with the same tokens need not
//! compute them again.
//!
//! A node is a page; only a full page has others after it. A page that is in the tree is used by the tree, and by any number of
//! sequences beside it; who forgets a node hands its page back. What was computed with other adapters has roots of its own.
//! Knows nothing of what pages hold.

use crate::model::AdaptersKey;
use crate::request::TokenId;
use kernels::attention::PAGE;
use std::collections::BTreeMap;

/// A node's place.
pub(super) type NodeId = usize;

#[derive(Debug, Default)]
pub(super) struct Prefixes {
    nodes: Vec<Option<Node>>,
    vacant: Vec<NodeId>,
    roots: BTreeMap<AdaptersKey, Vec<NodeId>>,
    clock: u64,
}

#[derive(Debug)]
struct Node {
    adapters: AdaptersKey,
    /// Up to [`PAGE`] of them; as many where the node has children.
    tokens: Vec<TokenId>,
    page: u32,
    parent: Option<NodeId>,
    children: Vec<NodeId>,
    used_at: u64,
    /// States of fixed size after so many of the node's tokens, by slot.
    states: Vec<(usize, u32)>,
}

/// The longest known beginning of a sequence.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Pages that are known in full.
    pub(super) pages: Vec<u32>,
    /// A page that begins with the next tokens, and how many of them.
    pub(super) partial: Option<(u32, usize)>,
    /// The slot of a state after all of that.
    pub(super) state: Option<u32>,
}

impl Found {
    pub(super) fn tokens(&self) -> usize {
        self.pages.len() * PAGE + self.partial.map_or(0, |(_, tokens)| tokens)
    }
}

/// What the tree has no use for, or none any more.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Unused {
    pub(super) pages: Vec<u32>,
    pub(super) slots: Vec<u32>,
}

/// A node as it is saved.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry<'a> {
    pub(super) adapters: AdaptersKey,
    /// The place of the page before it in the list.
    pub(super) parent: Option<usize>,
    pub(super) tokens: &'a [TokenId],
    pub(super) page: u32,
    pub(super) states: &'a [(usize, u32)],
}

impl Prefixes {
    fn node(&self, id: NodeId) -> &Node {
        self.nodes[id].as_ref().expect("a node that others know")
    }

    fn node_mut(&mut self, id: NodeId) -> &mut Node {
        self.nodes[id].as_mut().expect("a node that others know")
    }

    fn children(&self, adapters: AdaptersKey, parent: Option<NodeId>) -> &[NodeId] {
        match parent {
            Some(parent) => &self.node(parent).children,
            None => self.roots.get(&adapters).map_or(&[], Vec::as_slice),
        }
    }

    /// The longest beginning of `tokens` that is known with these adapters; where `with_state`, the longest after which a state
    /// is known.
    pub(super) fn find(&mut self, adapters: AdaptersKey, tokens: &[TokenId], with_state: bool) -> Found {
        let mut found = Found::default();
        let mut with_states = None;
        let mut parent = None;
        loop {
            let left = &tokens[found.pages.len() * PAGE..];
            let shared = |&id: &NodeId| common(&self.node(id).tokens, left);
            let best = self.children(adapters, parent).iter().copied().max_by_key(shared);
            let Some(id) = best.filter(|id| shared(id) > 0) else { break };
            let count = shared(&id);
            self.touch(id);
            let node = self.node(id);
            let page = node.page;
            let states = node.states.iter().filter(|(after, _)| *after <= count);
            if let Some(&(after, slot)) = states.max_by_key(|(after, _)| *after) {
                let mut pages = found.pages.clone();
                let partial = if after == PAGE {
                    pages.push(page);
                    None
                } else {
                    Some((page, after))
                };
                with_states = Some(Found { pages, partial, state: Some(slot) });
            }
            if count < PAGE {
                found.partial = Some((page, count));
                break;
            }
            found.pages.push(page);
            parent = Some(id);
        }
        if with_state { with_states.unwrap_or_default() } else { found }
    }

    /// Adds a sequence: what it was computed with, its tokens, the pages that hold them, and slots of states after so many
    /// tokens. Returns what was known already.
    pub(super) fn insert(
        &mut self,
        adapters: AdaptersKey,
        tokens: &[TokenId],
        pages: &[u32],
        states: &[(usize, u32)],
    ) -> Unused {
        assert_eq!(tokens.len().div_ceil(PAGE), pages.len(), "pages of the tokens");
        let mut unused = Unused::default();
        let mut parent = None;
        for (i, (chunk, &page)) in tokens.chunks(PAGE).zip(pages).enumerate() {
            let own = states.iter().filter(|(after, _)| after.div_ceil(PAGE) == i + 1);
            let own: Vec<_> = own.map(|&(after, slot)| (after - i * PAGE, slot)).collect();
            parent = Some(self.insert_page((adapters, parent), chunk, page, &own, &mut unused));
        }
        unused
    }

    /// Adds a page after `parent`, which is of the same adapters, with slots of states after so many of its tokens. What was
    /// known already goes to `unused`.
    pub(super) fn insert_page(
        &mut self,
        (adapters, parent): (AdaptersKey, Option<NodeId>),
        tokens: &[TokenId],
        page: u32,
        states: &[(usize, u32)],
        unused: &mut Unused,
    ) -> NodeId {
        let known = self.children(adapters, parent).iter().copied().find(|&id| {
            let other = &self.node(id).tokens;
            other.starts_with(tokens) || tokens.starts_with(other)
        });
        let id = match known {
            Some(id) => {
                let node = self.node_mut(id);
                if tokens.len() > node.tokens.len() {
                    // It was cut short; this page goes on.
                    unused.pages.push(std::mem::replace(&mut node.page, page));
                    node.tokens = tokens.to_vec();
                } else {
                    unused.pages.push(page);
                }
                id
            }
            None => {
                let (tokens, children, states) = (tokens.to_vec(), Vec::new(), Vec::new());
                self.add(Node { adapters, tokens, page, parent, children, used_at: 0, states })
            }
        };
        self.touch(id);
        let known = &mut self.node_mut(id).states;
        for &(after, slot) in states {
            match known.iter().any(|&(other, _)| other == after) {
                true => unused.slots.push(slot),
                false => known.push((after, slot)),
            }
        }
        id
    }

    /// Makes a page the most recently used.
    pub(super) fn touch(&mut self, id: NodeId) {
        self.clock += 1;
        let clock = self.clock;
        self.node_mut(id).used_at = clock;
    }

    /// How many pages there are of those that `count`.
    pub(super) fn count(&self, count: impl Fn(u32) -> bool) -> usize {
        self.nodes.iter().flatten().filter(|node| count(node.page)).count()
    }

    fn add(&mut self, node: Node) -> NodeId {
        let (adapters, parent) = (node.adapters, node.parent);
        let id = match self.vacant.pop() {
            Some(id) => {
                self.nodes[id] = Some(node);
                id
            }
            None => {
                self.nodes.push(Some(node));
                self.nodes.len() - 1
            }
        };
        match parent {
            Some(parent) => self.node_mut(parent).children.push(id),
            None => self.roots.entry(adapters).or_default().push(id),
        }
        id
    }

    /// Forgets the page that was not used for longest, of those that `may_go`; `None` where there is none.
    pub(super) fn forget(&mut self, may_go: impl Fn(u32) -> bool) -> Option<Unused> {
        let leaves = self.nodes.iter().enumerate().filter_map(|(id, node)| Some((id, node.as_ref()?)));
        let (id, _) = leaves
            .filter(|(_, node)| node.children.is_empty() && may_go(node.page))
            .min_by_key(|(_, node)| node.used_at)?;
        let node = self.nodes[id].take().expect("it was just found");
        self.vacant.push(id);
        match node.parent {
            Some(parent) => self.node_mut(parent).children.retain(|&sibling| sibling != id),
            None => self.roots.retain(|_, roots| {
                roots.retain(|&root| root != id);
                !roots.is_empty()
            }),
        }
        Some(Unused { pages: vec![node.page], slots: node.states.iter().map(|(_, slot)| *slot).collect() })
    }

    /// Forgets the state that was not used for longest, and returns its slot.
    pub(super) fn forget_state(&mut self) -> Option<u32> {
        let nodes = self.nodes.iter_mut().flatten().filter(|node| !node.states.is_empty());
        let node = nodes.min_by_key(|node| node.used_at)?;
        // The earlier one: what continues a sequence starts from the later.
        let earliest = (0..node.states.len()).min_by_key(|&i| node.states[i].0)?;
        Some(node.states.swap_remove(earliest).1)
    }

    /// Every page, parents before children, the most recently used first as far as that allows.
    pub(super) fn entries(&self) -> Vec<Entry<'_>> {
        let mut entries: Vec<Entry<'_>> = Vec::new();
        let mut open: Vec<(NodeId, Option<usize>)> =
            self.roots.values().flatten().map(|&id| (id, None)).collect();
        while let Some(i) = (0..open.len()).max_by_key(|&i| self.node(open[i].0).used_at) {
            let (id, parent) = open.swap_remove(i);
            let node = self.node(id);
            open.extend(node.children.iter().map(|&child| (child, Some(entries.len()))));
            let Node { adapters, page, .. } = *node;
            entries.push(Entry { adapters, parent, tokens: &node.tokens, page, states: &node.states });
        }
        entries
    }
}

/// How many tokens two lists begin with in common.
fn common(a: &[TokenId], b: &[TokenId]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const NONE: AdaptersKey = AdaptersKey([0; 32]);
    const OTHER: AdaptersKey = AdaptersKey([1; 32]);

    fn tokens(count: usize, seed: u32) -> Vec<TokenId> {
        (0..count as u32).map(|i| i * 31 + seed).collect()
    }

    #[test]
    fn the_longest_beginning_is_found() {
        let mut tree = Prefixes::default();
        let long = tokens(2 * PAGE + 40, 0);
        assert_eq!(tree.insert(NONE, &long, &[5, 6, 7], &[]), Unused::default());
        assert_eq!(
            tree.find(NONE, &long, false),
            Found { pages: vec![5, 6], partial: Some((7, 40)), state: None }
        );
        assert_eq!(tree.find(NONE, &long[..PAGE + 3], false).partial, Some((6, 3)));
        assert_eq!(tree.find(NONE, &tokens(9, 1), false), Found::default());
        let mut other = long.clone();
        other[PAGE + 10] += 1;
        assert_eq!(
            tree.find(NONE, &other, false),
            Found { pages: vec![5], partial: Some((6, 10)), state: None }
        );
        assert_eq!(tree.insert(NONE, &other, &[5, 8, 9], &[]), Unused { pages: vec![5], slots: vec![] });
        assert_eq!(
            tree.find(NONE, &other, false),
            Found { pages: vec![5, 8], partial: Some((9, 40)), state: None }
        );
    }

    #[test]
    fn a_page_that_goes_on_takes_the_place_of_one_that_was_cut_short() {
        let mut tree = Prefixes::default();
        let all = tokens(PAGE + 20, 0);
        tree.insert(NONE, &all[..50], &[1], &[]);
        assert_eq!(tree.insert(NONE, &all, &[2, 3], &[]), Unused { pages: vec![1], slots: vec![] });
        assert_eq!(tree.insert(NONE, &all[..60], &[4], &[]), Unused { pages: vec![4], slots: vec![] });
        assert_eq!(tree.find(NONE, &all, false).tokens(), PAGE + 20);
    }

    #[test]
    fn states_are_found_after_what_they_saw() {
        let mut tree = Prefixes::default();
        let all = tokens(2 * PAGE + 20, 0);
        let states = [(PAGE, 10), (PAGE + 7, 11), (2 * PAGE + 20, 12)];
        assert_eq!(tree.insert(NONE, &all, &[1, 2, 3], &states), Unused::default());
        let state = |tree: &mut Prefixes, tokens: &[TokenId]| {
            let found = tree.find(NONE, tokens, true);
            (found.tokens(), found.state)
        };
        assert_eq!(state(&mut tree, &all), (2 * PAGE + 20, Some(12)));
        assert_eq!(state(&mut tree, &all[..2 * PAGE + 19]), (PAGE + 7, Some(11)));
        assert_eq!(state(&mut tree, &all[..PAGE + 6]), (PAGE, Some(10)));
        assert_eq!(state(&mut tree, &all[..PAGE - 1]), (0, None));
        let again = tree.insert(NONE, &all, &[4, 5, 6], &[(PAGE, 20), (PAGE + 9, 21)]);
        assert_eq!(again, Unused { pages: vec![4, 5, 6], slots: vec![20] });
        assert_eq!(tree.forget_state(), Some(10));
    }

    proptest! {
        /// Against a list of all that was inserted: what is found is the longest common beginning of those with the same
        /// adapters, and every page is handed
        /// back exactly once.
        #[test]
        fn the_tree_agrees_with_a_list(
            sequences in prop::collection::vec(prop::collection::vec(0u32..2, 1..4 * PAGE), 1..8),
            forgotten in 0usize..6,
        ) {
            // Tokens of few kinds in long runs, so that sequences share pages.
            let sequences: Vec<Vec<TokenId>> =
                sequences.into_iter().map(|s| s.iter().map(|t| t / 2 + u32::from(s.len() % 3 == 0)).collect()).collect();
            let key = |sequence: &Vec<TokenId>| if sequence.len().is_multiple_of(2) { NONE } else { OTHER };
            let mut tree = Prefixes::default();
            let mut next = 0;
            let mut held = BTreeSet::new();
            for sequence in &sequences {
                let pages: Vec<u32> = (0..sequence.len().div_ceil(PAGE)).map(|i| next + i as u32).collect();
                next += pages.len() as u32;
                held.extend(pages.iter().copied());
                for page in tree.insert(key(sequence), sequence, &pages, &[]).pages {
                    prop_assert!(held.remove(&page), "page {page} was handed back twice");
                }
            }
            for sequence in &sequences {
                for adapters in [NONE, OTHER] {
                    let of_adapters = sequences.iter().filter(|other| key(other) == adapters);
                    let best = of_adapters.map(|other| common(other, sequence)).max().unwrap_or(0);
                    prop_assert_eq!(tree.find(adapters, sequence, false).tokens(), best);
                }
            }
            let listed: BTreeSet<u32> = tree.entries().iter().map(|entry| entry.page).collect();
            prop_assert_eq!(&listed, &held);
            for (i, entry) in tree.entries().iter().enumerate() {
                prop_assert!(entry.parent.is_none_or(|parent| parent < i));
            }
            for _ in 0..forgotten {
                if let Some(unused) = tree.forget(|_| true) {
                    prop_assert!(held.remove(&unused.pages[0]));
                }
            }
            prop_assert_eq!(tree.entries().len(), held.len());
        }
    }
}
