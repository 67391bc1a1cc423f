//! The nodes of a tree: lookups, and changes by batches. The invariants are listed in the parent
//! module.

use super::leaf::{BLOCK, Leaf, Spot};
use negsync_reconcile::Item;
use negsync_reconcile::Sum;
use std::sync::Arc;

/// Maximum sizes of nodes. Smaller in tests, to force splits and joins.
#[derive(Clone, Copy, Debug)]
pub(super) struct NodeShape {
    /// Items in a full leaf; at least 2.
    pub leaf: usize,
    /// Children of a full inner node; at least 4, so that half a node still has a neighbour to
    /// join.
    pub fanout: usize,
}

impl Default for NodeShape {
    fn default() -> Self {
        Self { leaf: 256, fanout: 32 }
    }
}

impl NodeShape {
    /// Maximum heap bytes of a tree of `count` items (invariants 3 and 4).
    pub fn memory_bytes(self, count: usize) -> usize {
        /// The reference counts of a node, its vector, and the overhead of the allocator.
        const NODE_BYTES: usize = 416;
        /// The capacity of a vector of children may be twice its length.
        const PLACE_BYTES: usize = 2 * size_of::<Subtree>() + 16 + size_of::<Sum>();
        /// No tree of 64-bit ranks and fanout 4 is higher.
        const RIGHT_EDGE: usize = 32;
        let leaves = count / (self.leaf / 2).max(1);
        let inner = leaves / (self.fanout / 2).saturating_sub(1).max(1);
        let edge = RIGHT_EDGE.min(count);
        (count + count / BLOCK) * size_of::<Item>()
            + (leaves + inner + edge + 1) * (NODE_BYTES + PLACE_BYTES)
    }
}

/// The working memory of a batch on its way down the tree.
pub(super) struct TreeBatch {
    shape: NodeShape,
    /// The items of the current leaf, before they are divided.
    items: Vec<Item>,
}

impl TreeBatch {
    pub fn new(shape: NodeShape) -> Self {
        Self { shape, items: Vec::with_capacity(2 * shape.leaf) }
    }
}

/// A node and the totals of the items below it.
#[derive(Clone, Debug)]
pub(super) struct Subtree {
    /// The least item; all zeros if there is none.
    first: Item,
    count: usize,
    sum: Sum,
    node: Node,
}

#[derive(Clone, Debug)]
enum Node {
    Leaf(Leaf),
    Inner(Arc<InnerNode>),
}

/// The children of a node, and packed beside them the fields that a lookup reads: `place` and
/// `with_rank` find a child in them.
#[derive(Debug, Default)]
struct InnerNode {
    children: Vec<Subtree>,
    /// The second of each child's least item.
    times: Vec<u64>,
    /// The number of items of the node before each child.
    ranks: Vec<usize>,
    /// The sum of the ids of those items.
    sums: Vec<Sum>,
}

impl InnerNode {
    /// Sets the node's `children`, and returns the number of their items and the sum of the ids.
    fn set(&mut self, children: Vec<Subtree>) -> (usize, Sum) {
        let (mut count, mut sum) = (0, Sum::ZERO);
        self.times.clear();
        self.ranks.clear();
        self.sums.clear();
        self.times.extend(children.iter().map(|child| child.first.created_at));
        self.ranks.reserve_exact(children.len());
        self.sums.reserve_exact(children.len());
        for child in &children {
            self.ranks.push(count);
            self.sums.push(sum);
            count += child.count;
            sum.add(&child.sum);
        }
        self.children = children;
        (count, sum)
    }

    /// The child that contains `item` or its position: [`place`], by the times alone where they
    /// suffice.
    fn place(&self, item: &Item) -> usize {
        let until = self.times.partition_point(|time| *time <= item.created_at);
        let before = self.children.get(..until).unwrap_or_default();
        if before.last().is_some_and(|child| child.first.created_at == item.created_at) {
            return place(before, item);
        }
        until.saturating_sub(1)
    }

    /// The child that contains the item at `rank`; the last child past the end.
    fn with_rank(&self, rank: usize) -> usize {
        self.ranks.partition_point(|start| *start <= rank).saturating_sub(1)
    }
}

// Lookups.
impl Subtree {
    pub fn count(&self) -> usize {
        self.count
    }

    pub fn sum(&self) -> Sum {
        self.sum
    }

    /// The leaf that contains `item` or its position.
    pub fn spot_of(&self, item: &Item) -> Spot<'_> {
        self.spot(|inner, _| inner.place(item))
    }

    /// The leaf that contains the item at `rank`; the last leaf past the end.
    pub fn spot_at(&self, rank: usize) -> Spot<'_> {
        self.spot(|inner, before| inner.with_rank(rank.saturating_sub(before)))
    }

    /// The leaf that `choose` leads to. `choose` gets a node and the number of items before that
    /// node.
    fn spot(&self, choose: impl Fn(&InnerNode, usize) -> usize) -> Spot<'_> {
        let (mut rank, mut sum, mut next) = (0, Sum::ZERO, None);
        let mut here = self;
        loop {
            match &here.node {
                Node::Leaf(leaf) => return Spot::new(leaf, rank, sum, next),
                Node::Inner(inner) => {
                    let at = choose(inner, rank);
                    if let (Some(before), Some(part)) = (inner.ranks.get(at), inner.sums.get(at)) {
                        rank += before;
                        sum.add(part);
                    }
                    next = inner.children.get(at + 1).map(|child| &child.first).or(next);
                    // Invariant 4: an inner node has children, and `choose` returns the index of
                    // one.
                    match inner.children.get(at) {
                        Some(child) => here = child,
                        None => return Spot::default(),
                    }
                }
            }
        }
    }
}

// Construction of nodes.
impl Subtree {
    /// A leaf of `items`, which must ascend.
    pub fn leaf(items: &[Item]) -> Self {
        let (leaf, sum) = Leaf::new(items);
        let first = items.first().copied().unwrap_or_default();
        Self { first, count: items.len(), sum, node: Node::Leaf(leaf) }
    }

    fn inner(children: Vec<Subtree>) -> Self {
        let first = children.first().map(|child| child.first).unwrap_or_default();
        let mut inner = InnerNode::default();
        let (count, sum) = inner.set(children);
        Self { first, count, sum, node: Node::Inner(Arc::new(inner)) }
    }

    /// The root over `level`, nodes of one depth; adds as many levels as needed, with full nodes.
    pub fn over(mut level: Vec<Subtree>, shape: NodeShape) -> Self {
        while level.len() > 1 {
            level = inner_nodes(level, shape, true).collect();
        }
        level.pop().unwrap_or_else(|| Self::leaf(&[]))
    }

    /// Replaces itself by the first of `nodes` and returns the others.
    fn become_first(&mut self, mut nodes: impl Iterator<Item = Subtree>) -> Vec<Subtree> {
        *self = nodes.next().unwrap_or_else(|| Self::leaf(&[]));
        nodes.collect()
    }
}

// Changes.
impl Subtree {
    /// Inserts `fresh`: ascending, not empty, none of them present. `edge` says that this node is
    /// on the right edge. Returns the overflow: nodes of the same depth that follow it.
    pub fn insert(&mut self, fresh: &[Item], edge: bool, work: &mut TreeBatch) -> Vec<Subtree> {
        match &mut self.node {
            Node::Leaf(items) => {
                merge(items.items(), fresh, &mut work.items);
                self.become_first(leaves(work, edge))
            }
            Node::Inner(shared) => {
                let mut children = children_to_change(shared);
                // From the right, so that new siblings do not shift children that are still to be
                // changed.
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

    /// Removes `gone`: ascending, not empty, all of them present. The node may become thin or
    /// empty; its parent repairs that.
    pub fn remove(&mut self, gone: &[Item], edge: bool, work: &mut TreeBatch) {
        match &mut self.node {
            Node::Leaf(items) => {
                subtract(items.items(), gone, &mut work.items);
                *self = Self::leaf(&work.items);
            }
            Node::Inner(shared) => {
                let mut children = children_to_change(shared);
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

    /// Drops levels that have only one node after a removal (invariant 4).
    pub fn shorten(&mut self) {
        while let Node::Inner(children) = &self.node {
            match children.children.as_slice() {
                [] => *self = Self::leaf(&[]),
                [only] => *self = only.clone(),
                _ => break,
            }
        }
    }

    /// Puts back the children that were taken from an inner node. Those beyond the fanout are
    /// returned as nodes that follow it.
    fn put_back(&mut self, children: Vec<Subtree>, edge: bool, work: &TreeBatch) -> Vec<Subtree> {
        if children.len() > work.shape.fanout {
            return self.become_first(inner_nodes(children, work.shape, edge));
        }
        self.first = children.first().map(|child| child.first).unwrap_or_default();
        if let Node::Inner(shared) = &mut self.node {
            let mut fresh = InnerNode::default();
            let alone = Arc::get_mut(shared);
            let is_shared = alone.is_none();
            (self.count, self.sum) = alone.unwrap_or(&mut fresh).set(children);
            if is_shared {
                *shared = Arc::new(fresh);
            }
        }
        Vec::new()
    }

    /// Merges `right`, the next node of the same depth, into this one. Returns the second half if
    /// both are too large for one node.
    fn join(&mut self, right: &Subtree, edge: bool, work: &mut TreeBatch) -> Vec<Subtree> {
        match (&self.node, &right.node) {
            (Node::Inner(left), Node::Inner(right)) => {
                let mut children = [left.children.as_slice(), &right.children].concat();
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
            Node::Leaf(leaf) => leaf.items(),
            Node::Inner(_) => &[],
        }
    }

    /// Whether the node is less than half full.
    fn is_thin(&self, shape: NodeShape) -> bool {
        match &self.node {
            Node::Leaf(leaf) => leaf.items().len() < shape.leaf / 2,
            Node::Inner(inner) => inner.children.len() < shape.fanout / 2,
        }
    }
}

/// The children of a node that is about to be replaced: moved out if this tree is the only holder,
/// otherwise copied (invariant 5).
fn children_to_change(shared: &mut Arc<InnerNode>) -> Vec<Subtree> {
    match Arc::get_mut(shared) {
        Some(alone) => std::mem::take(&mut alone.children),
        None => shared.children.clone(),
    }
}

/// Drops empty children and joins thin ones with a neighbour. Afterwards no child is thin, except
/// the last one on the right edge, or there is only one.
fn mend(children: &mut Vec<Subtree>, edge: bool, work: &mut TreeBatch) {
    children.retain(|child| child.count > 0);
    let mut at = 0;
    while children.len() > 1 {
        let Some(child) = children.get(at) else { break };
        let is_last = at + 1 == children.len();
        if !child.is_thin(work.shape) || (edge && is_last) {
            at += 1;
            continue;
        }
        // The last one is joined with its predecessor, any other with its successor. The result may
        // still be thin and is checked again.
        at = at.min(children.len() - 2);
        let right = children.remove(at + 1);
        let edge = edge && at + 1 == children.len();
        if let Some(left) = children.get_mut(at) {
            let second = left.join(&right, edge, work);
            children.splice(at + 1..at + 1, second);
        }
    }
}

/// The index in `children` of the child that contains `item` or its position.
fn place(children: &[Subtree], item: &Item) -> usize {
    children.partition_point(|child| child.first.cmp(item).is_le()).saturating_sub(1)
}

/// Splits from the end of `rest` the items that belong to one child, and returns them with the
/// index of that child. `None` when `rest` is empty.
fn take_last<'a>(
    rest: &mut &'a [Item],
    children: Option<&[Subtree]>,
) -> Option<(usize, &'a [Item])> {
    let children = children?;
    let at = place(children, rest.last()?);
    let first = children.get(at)?.first;
    // The first child also takes items less than all others.
    let from = if at == 0 { 0 } else { rest.partition_point(|item| *item < first) };
    let (before, taken) = rest.split_at(from);
    *rest = before;
    Some((at, taken))
}

/// Merges `old` and `fresh` into `out`, in order.
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

/// Copies `old` without `gone` into `out`.
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
fn leaves(work: &TreeBatch, edge: bool) -> impl Iterator<Item = Subtree> {
    let mut rest = work.items.as_slice();
    sizes(rest.len(), work.shape.leaf, edge).map(move |size| {
        let (leaf, after) = rest.split_at(size);
        rest = after;
        Subtree::leaf(leaf)
    })
}

/// Inner nodes for `children`.
fn inner_nodes(
    children: Vec<Subtree>,
    shape: NodeShape,
    edge: bool,
) -> impl Iterator<Item = Subtree> {
    let sizes = sizes(children.len(), shape.fanout, edge);
    let mut rest = children.into_iter();
    sizes.map(move |size| Subtree::inner(rest.by_ref().take(size).collect()))
}

/// The sizes of the fewest nodes that hold `count`: at the right edge all full except the last,
/// elsewhere as equal as possible, so that none is thin (invariant 6).
fn sizes(count: usize, full: usize, edge: bool) -> impl Iterator<Item = usize> {
    let nodes = count.div_ceil(full);
    let end = move |node: usize| match edge {
        true => (node * full).min(count),
        false => node * count / nodes,
    };
    (0..nodes).map(move |node| end(node + 1) - end(node))
}

#[cfg(test)]
impl Subtree {
    /// A leaf's items, or no items and an inner node's children.
    pub fn parts(&self) -> (Option<&[Item]>, &[Subtree]) {
        match &self.node {
            Node::Leaf(leaf) => (Some(leaf.items()), &[]),
            Node::Inner(inner) => (None, &inner.children),
        }
    }

    pub fn totals(&self) -> (Item, usize, Sum) {
        (self.first, self.count, self.sum)
    }

    pub fn leaves(&self) -> usize {
        match &self.node {
            Node::Leaf(_) => 1,
            Node::Inner(inner) => inner.children.iter().map(Subtree::leaves).sum(),
        }
    }

    /// The address of the node, and its heap memory in bytes.
    pub fn address_and_bytes(&self) -> (usize, usize) {
        match &self.node {
            Node::Leaf(leaf) => leaf.address_and_bytes(),
            Node::Inner(inner) => {
                let InnerNode { children, times, ranks, sums } = &**inner;
                let lists = children.capacity() * size_of::<Subtree>()
                    + (times.capacity() + ranks.capacity()) * size_of::<u64>()
                    + sums.capacity() * size_of::<Sum>();
                (Arc::as_ptr(inner).addr(), lists + size_of::<InnerNode>() + 16)
            }
        }
    }
}
