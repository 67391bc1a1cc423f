//! The nodes of a tree: looking things up, and changing them by batches.
//! The invariants named here stand at the head of the parent module.

use crate::item::Item;
use crate::reconcile::Sum;
use std::ops::Range;
use std::sync::Arc;

/// How large nodes may be. Smaller in tests, to force splits and joins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Items in a full leaf; at least 2.
    pub leaf: usize,
    /// Children of a full inner node; at least 4, so that half of it has a neighbour to join.
    pub fanout: usize,
}

impl Default for Shape {
    fn default() -> Self {
        Self { leaf: 128, fanout: 32 }
    }
}

impl Shape {
    /// The most heap bytes that a tree of `count` items takes (invariants 3 and 4).
    pub fn memory_bytes(self, count: usize) -> usize {
        /// The reference counts of a node, its vector, and what the allocator adds and wastes.
        const NODE_BYTES: usize = 160;
        /// A vector of children may have grown to twice what it holds.
        const PLACE_BYTES: usize = 2 * size_of::<Subtree>();
        /// No tree of 64-bit ranks and fanout 4 is higher.
        const RIGHT_EDGE: usize = 32;
        let leaves = count / (self.leaf / 2).max(1);
        let inner = leaves / (self.fanout / 2).saturating_sub(1).max(1);
        let edge = RIGHT_EDGE.min(count);
        count * size_of::<Item>() + (leaves + inner + edge + 1) * (NODE_BYTES + PLACE_BYTES)
    }
}

/// What a batch carries down the tree.
pub(super) struct Work {
    shape: Shape,
    /// The items of the leaf at hand, before they are cut to size.
    items: Vec<Item>,
}

impl Work {
    pub fn new(shape: Shape) -> Self {
        Self { shape, items: Vec::with_capacity(2 * shape.leaf) }
    }
}

/// A node and what lies below it.
#[derive(Clone, Debug)]
pub(super) struct Subtree {
    /// The least item; all zeros when there is none.
    first: Item,
    count: usize,
    sum: Sum,
    node: Node,
}

#[derive(Clone, Debug)]
enum Node {
    Leaf(Arc<[Item]>),
    Inner(Arc<Vec<Subtree>>),
}

// Looking things up.
impl Subtree {
    pub fn count(&self) -> usize {
        self.count
    }

    pub fn contains(&self, item: &Item) -> bool {
        match &self.node {
            Node::Leaf(items) => items.binary_search(item).is_ok(),
            Node::Inner(children) => {
                children.get(place(children, item)).is_some_and(|child| child.contains(item))
            }
        }
    }

    /// How many items are less than `item`.
    pub fn lower_bound(&self, item: &Item) -> usize {
        match &self.node {
            Node::Leaf(items) => items.partition_point(|other| other.cmp(item).is_lt()),
            Node::Inner(children) => {
                let (before, after) = children.split_at(place(children, item));
                let skipped: usize = before.iter().map(|child| child.count).sum();
                skipped + after.first().map_or(0, |child| child.lower_bound(item))
            }
        }
    }

    /// The items from `rank` to the end of the leaf that holds it.
    pub fn run(&self, mut rank: usize) -> Option<&[Item]> {
        match &self.node {
            Node::Leaf(items) => items.get(rank..).filter(|run| !run.is_empty()),
            Node::Inner(children) => {
                for child in children.iter() {
                    if rank < child.count {
                        return child.run(rank);
                    }
                    rank -= child.count;
                }
                None
            }
        }
    }

    /// The sum of the ids at `ranks`, from whichever is less to add up: the
    /// ranks asked for, or those on either side of them.
    pub fn sum(&self, ranks: Range<usize>) -> Sum {
        let end = ranks.end.min(self.count);
        let start = ranks.start.min(end);
        if end - start <= self.count / 2 {
            return self.sum_parts(start..end);
        }
        let mut sum = self.sum;
        sum.subtract(&self.sum_parts(0..start));
        sum.subtract(&self.sum_parts(end..self.count));
        sum
    }

    /// The rank of the first item from `start` on that is not less than `item`,
    /// and the sum of the ids between, in one way down.
    pub fn sum_until(&self, start: usize, item: &Item) -> (usize, Sum) {
        let mut sum = Sum::ZERO;
        match &self.node {
            Node::Leaf(items) => {
                let rest = items.get(start..).unwrap_or_default();
                let less = rest.iter().take_while(|other| *other < item);
                let count = less.inspect(|other| sum.add(&Sum::of(&other.id))).count();
                (start + count, sum)
            }
            Node::Inner(children) => {
                let (mut before, mut start) = (0, start);
                let mut children = children.iter().peekable();
                while let Some(child) = children.next() {
                    if start >= child.count && children.peek().is_some() {
                        before += child.count;
                        start -= child.count;
                        continue;
                    }
                    // The item may be in this child, or beyond it.
                    if children.peek().is_none_or(|next| next.first >= *item) {
                        let (end, part) = child.sum_until(start, item);
                        sum.add(&part);
                        return (before + end, sum);
                    }
                    sum.add(&child.sum(start..child.count));
                    before += child.count;
                    start = 0;
                }
                (before, sum)
            }
        }
    }

    fn sum_parts(&self, ranks: Range<usize>) -> Sum {
        let mut sum = Sum::ZERO;
        if ranks.is_empty() {
            return sum;
        }
        match &self.node {
            Node::Leaf(items) => return sum_of(items.get(ranks).unwrap_or_default()),
            Node::Inner(children) => {
                let Range { mut start, mut end } = ranks;
                for child in children.iter() {
                    if start < child.count {
                        sum.add(&child.sum(start..end));
                    }
                    if end <= child.count {
                        break;
                    }
                    start = start.saturating_sub(child.count);
                    end -= child.count;
                }
            }
        }
        sum
    }
}

// Making nodes.
impl Subtree {
    /// A leaf of `items`, which ascend.
    pub fn leaf(items: &[Item]) -> Self {
        Self {
            first: items.first().copied().unwrap_or_default(),
            count: items.len(),
            sum: sum_of(items),
            node: Node::Leaf(items.into()),
        }
    }

    fn inner(children: Vec<Subtree>) -> Self {
        let mut subtree = Self::leaf(&[]);
        subtree.total(&children);
        subtree.node = Node::Inner(Arc::new(children));
        subtree
    }

    /// The root over `level`, nodes of one depth: as many levels as that takes, packed full.
    pub fn over(mut level: Vec<Subtree>, shape: Shape) -> Self {
        while level.len() > 1 {
            level = inner_nodes(level, shape, true).collect();
        }
        level.pop().unwrap_or_else(|| Self::leaf(&[]))
    }

    /// States what lies below (invariant 2).
    fn total(&mut self, children: &[Subtree]) {
        self.first = children.first().map(|child| child.first).unwrap_or_default();
        self.count = 0;
        self.sum = Sum::ZERO;
        for child in children {
            self.count += child.count;
            self.sum.add(&child.sum);
        }
    }

    /// Becomes the first of `nodes` and hands back the others.
    fn become_first(&mut self, mut nodes: impl Iterator<Item = Subtree>) -> Vec<Subtree> {
        *self = nodes.next().unwrap_or_else(|| Self::leaf(&[]));
        nodes.collect()
    }
}

// Changing them.
impl Subtree {
    /// Inserts `fresh`: ascending, not empty, none of them here yet. `edge` says
    /// that this node is on the right edge. What outgrows it is returned: nodes
    /// of the same depth that follow it.
    pub fn insert(&mut self, fresh: &[Item], edge: bool, work: &mut Work) -> Vec<Subtree> {
        match &mut self.node {
            Node::Leaf(items) => {
                merge(items, fresh, &mut work.items);
                self.become_first(leaves(work, edge))
            }
            Node::Inner(shared) => {
                let mut children = std::mem::take(Arc::make_mut(shared));
                // From the right, so that new siblings do not move what is still to be done.
                let mut rest = fresh;
                let mut open = children.len();
                while let Some((at, right)) = take_last(&mut rest, children.get(..open)) {
                    let edge = edge && at + 1 == children.len();
                    if let Some(child) = children.get_mut(at) {
                        let siblings = child.insert(right, edge, work);
                        children.splice(at + 1..at + 1, siblings);
                    }
                    open = at;
                }
                self.put_back(children, edge, work)
            }
        }
    }

    /// Removes `gone`: ascending, not empty, all of them here. The node may be
    /// left thin or empty, which is its parent's to mend.
    pub fn remove(&mut self, gone: &[Item], edge: bool, work: &mut Work) {
        match &mut self.node {
            Node::Leaf(items) => {
                subtract(items, gone, &mut work.items);
                *self = Self::leaf(&work.items);
            }
            Node::Inner(shared) => {
                let mut children = std::mem::take(Arc::make_mut(shared));
                let mut rest = gone;
                let mut open = children.len();
                while let Some((at, right)) = take_last(&mut rest, children.get(..open)) {
                    let edge = edge && at + 1 == children.len();
                    if let Some(child) = children.get_mut(at) {
                        child.remove(right, edge, work);
                    }
                    open = at;
                }
                mend(&mut children, edge, work);
                self.put_back(children, edge, work);
            }
        }
    }

    /// Drops the levels that a removal left without a choice to make (invariant 4).
    pub fn shorten(&mut self) {
        while let Node::Inner(children) = &self.node {
            match children.as_slice() {
                [] => *self = Self::leaf(&[]),
                [only] => *self = only.clone(),
                _ => break,
            }
        }
    }

    /// Gives an inner node the children that were taken from it. Those beyond
    /// the fanout are returned as nodes that follow it.
    fn put_back(&mut self, children: Vec<Subtree>, edge: bool, work: &Work) -> Vec<Subtree> {
        if children.len() > work.shape.fanout {
            return self.become_first(inner_nodes(children, work.shape, edge));
        }
        self.total(&children);
        if let Node::Inner(shared) = &mut self.node {
            *Arc::make_mut(shared) = children;
        }
        Vec::new()
    }

    /// Takes in `right`, the next node of the same depth, and returns the second
    /// half if both are too much for one.
    fn join(&mut self, right: &Subtree, edge: bool, work: &mut Work) -> Vec<Subtree> {
        match (&self.node, &right.node) {
            (Node::Inner(left), Node::Inner(right)) => {
                let mut children = [left.as_slice(), right.as_slice()].concat();
                mend(&mut children, edge, work);
                self.become_first(inner_nodes(children, work.shape, false))
            }
            _ => {
                work.items.clear();
                work.items.extend_from_slice(self.items());
                work.items.extend_from_slice(right.items());
                self.become_first(leaves(work, false))
            }
        }
    }

    fn items(&self) -> &[Item] {
        match &self.node {
            Node::Leaf(items) => items,
            Node::Inner(_) => &[],
        }
    }

    /// Whether the node holds less than half of what it may.
    fn is_thin(&self, shape: Shape) -> bool {
        match &self.node {
            Node::Leaf(items) => items.len() < shape.leaf / 2,
            Node::Inner(children) => children.len() < shape.fanout / 2,
        }
    }
}

/// Drops empty children and joins thin ones with a neighbour. At the end no child
/// is thin, save the last on the right edge, or there is only one left.
fn mend(children: &mut Vec<Subtree>, edge: bool, work: &mut Work) {
    children.retain(|child| child.count > 0);
    let mut at = 0;
    while children.len() > 1 {
        let Some(child) = children.get(at) else { break };
        let is_last = at + 1 == children.len();
        if !child.is_thin(work.shape) || (edge && is_last) {
            at += 1;
            continue;
        }
        // The last joins the one before it, any other the one after it. What
        // comes of it may still be thin and is looked at again.
        at = at.min(children.len() - 2);
        let right = children.remove(at + 1);
        let edge = edge && at + 1 == children.len();
        if let Some(left) = children.get_mut(at) {
            let second = left.join(&right, edge, work);
            children.splice(at + 1..at + 1, second);
        }
    }
}

/// Which of `children` holds `item`, or would.
fn place(children: &[Subtree], item: &Item) -> usize {
    children.partition_point(|child| child.first.cmp(item).is_le()).saturating_sub(1)
}

/// Cuts from the end of `rest` the items that belong to one child, and says to
/// which of `children`. None when nothing is left.
fn take_last<'a>(
    rest: &mut &'a [Item],
    children: Option<&[Subtree]>,
) -> Option<(usize, &'a [Item])> {
    let children = children?;
    let at = place(children, rest.last()?);
    let first = children.get(at)?.first;
    // The first child also takes what is less than all.
    let from = if at == 0 { 0 } else { rest.partition_point(|item| *item < first) };
    let (before, taken) = rest.split_at(from);
    *rest = before;
    Some((at, taken))
}

/// `old` and `fresh` in order, into `out`.
fn merge(mut old: &[Item], fresh: &[Item], out: &mut Vec<Item>) {
    out.clear();
    for item in fresh {
        let (before, after) = old.split_at(old.partition_point(|other| other.cmp(item).is_lt()));
        out.extend_from_slice(before);
        out.push(*item);
        old = after;
    }
    out.extend_from_slice(old);
}

/// `old` without `gone`, into `out`.
fn subtract(mut old: &[Item], gone: &[Item], out: &mut Vec<Item>) {
    out.clear();
    for item in gone {
        let (before, after) = old.split_at(old.partition_point(|other| other.cmp(item).is_lt()));
        out.extend_from_slice(before);
        old = after.strip_prefix(std::slice::from_ref(item)).unwrap_or(after);
    }
    out.extend_from_slice(old);
}

/// Leaves for the items in `work`.
fn leaves(work: &Work, edge: bool) -> impl Iterator<Item = Subtree> {
    let mut rest = work.items.as_slice();
    sizes(rest.len(), work.shape.leaf, edge).map(move |size| {
        let (leaf, after) = rest.split_at(size);
        rest = after;
        Subtree::leaf(leaf)
    })
}

/// Inner nodes for `children`.
fn inner_nodes(children: Vec<Subtree>, shape: Shape, edge: bool) -> impl Iterator<Item = Subtree> {
    let sizes = sizes(children.len(), shape.fanout, edge);
    let mut rest = children.into_iter();
    sizes.map(move |size| Subtree::inner(rest.by_ref().take(size).collect()))
}

/// The sizes of the fewest nodes that hold `count`: at the right edge all full
/// but the last, elsewhere as equal as can be, so that none is thin (invariant 6).
fn sizes(count: usize, full: usize, edge: bool) -> impl Iterator<Item = usize> {
    let nodes = count.div_ceil(full);
    let end = move |node: usize| match edge {
        true => (node * full).min(count),
        false => node * count / nodes,
    };
    (0..nodes).map(move |node| end(node + 1) - end(node))
}

fn sum_of(items: &[Item]) -> Sum {
    let mut sum = Sum::ZERO;
    for item in items {
        sum.add(&Sum::of(&item.id));
    }
    sum
}

#[cfg(test)]
impl Subtree {
    /// A leaf's items, or nothing and an inner node's children.
    pub fn parts(&self) -> (Option<&[Item]>, &Vec<Subtree>) {
        const NONE: &Vec<Subtree> = &Vec::new();
        match &self.node {
            Node::Leaf(items) => (Some(items), NONE),
            Node::Inner(children) => (None, children),
        }
    }

    pub fn totals(&self) -> (Item, usize, Sum) {
        (self.first, self.count, self.sum)
    }

    pub fn leaves(&self) -> usize {
        match &self.node {
            Node::Leaf(_) => 1,
            Node::Inner(children) => children.iter().map(Subtree::leaves).sum(),
        }
    }

    pub fn address(&self) -> usize {
        match &self.node {
            Node::Leaf(items) => Arc::as_ptr(items).addr(),
            Node::Inner(children) => Arc::as_ptr(children).addr(),
        }
    }
}
