//! A model's parameters as one ordered, named list. Gradients and optimizer moments use the same
//! list.

use super::Gpt2Config;
use super::parts::{Norm, Parts};
use crate::error::Result;
use crate::ops::{Backend, buffer};
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use std::ops::Range;

/// Numbers that one task writes: 256 KiB.
const PAGES: usize = 1 << 16;

/// What a parameter is. Weight decay, initialisation, storage and counts follow from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ParamKind {
    /// Token embedding, which is the head as well unless that is a matrix of its own.
    Embedding,
    /// A head that is a matrix of its own, `[V, D]` like the embedding.
    Head,
    /// Learned positions.
    Position,
    /// A matrix whose product stays within its block.
    Matrix,
    /// A matrix whose product is added to the residual stream.
    ResidualMatrix,
    /// Scale of a norm.
    Norm,
    /// Shift of a norm or of a product.
    Bias,
}

impl ParamKind {
    /// Whether weight decay applies: to matrices and embeddings, never to biases and norms.
    pub fn decays(self) -> bool {
        !matches!(self, Self::Norm | Self::Bias)
    }

    /// Whether it is a matrix of a block, whose elements are one multiply-add per token each.
    pub fn is_matrix(self) -> bool {
        matches!(self, Self::Matrix | Self::ResidualMatrix)
    }

    /// Whether it is a factor of products, the head's among them: a model that is only read may
    /// store it in bf16.
    pub fn is_factor(self) -> bool {
        self.is_matrix() || matches!(self, Self::Embedding | Self::Head)
    }
}

/// Name, shape and kind of one parameter.
#[derive(Debug, Clone, PartialEq)]
pub struct ParamSpec {
    /// GPT-2's name for it, without the `transformer.` prefix, whatever the family's files say.
    pub name: String,
    /// Its dimensions; a matrix is in the Conv1D layout `[in, out]`.
    pub shape: Vec<usize>,
    /// What it is.
    pub kind: ParamKind,
}

impl ParamSpec {
    fn new(name: &str, kind: ParamKind, shape: &[usize]) -> Self {
        Self { name: name.to_string(), shape: shape.to_vec(), kind }
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// One thing for each parameter of a block, in storage order. What a model lacks is None.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BlockOf<T> {
    pub ln_1_w: T,
    pub ln_1_b: Option<T>,
    pub attn_w: T,
    pub attn_b: Option<T>,
    pub q_norm_w: Option<T>,
    pub k_norm_w: Option<T>,
    pub attn_proj_w: T,
    pub attn_proj_b: Option<T>,
    pub ln_2_w: T,
    pub ln_2_b: Option<T>,
    pub fc_w: T,
    pub fc_b: Option<T>,
    pub proj_w: T,
    pub proj_b: Option<T>,
}

/// The parameters of one block.
pub type Block<'a> = BlockOf<&'a Tensor>;

impl<T> BlockOf<T> {
    /// The same of each, in storage order.
    fn map<U>(self, mut f: impl FnMut(T) -> U) -> BlockOf<U> {
        BlockOf {
            ln_1_w: f(self.ln_1_w),
            ln_1_b: self.ln_1_b.map(&mut f),
            attn_w: f(self.attn_w),
            attn_b: self.attn_b.map(&mut f),
            q_norm_w: self.q_norm_w.map(&mut f),
            k_norm_w: self.k_norm_w.map(&mut f),
            attn_proj_w: f(self.attn_proj_w),
            attn_proj_b: self.attn_proj_b.map(&mut f),
            ln_2_w: f(self.ln_2_w),
            ln_2_b: self.ln_2_b.map(&mut f),
            fc_w: f(self.fc_w),
            fc_b: self.fc_b.map(&mut f),
            proj_w: f(self.proj_w),
            proj_b: self.proj_b.map(&mut f),
        }
    }
}

impl BlockOf<ParamSpec> {
    /// What a block of this shape consists of; names are within the block.
    fn new(config: &Gpt2Config) -> Self {
        use ParamKind::{Bias, Matrix, Norm as Scale, ResidualMatrix};
        let Parts { norm, biases, .. } = config.parts;
        let (d, f, q, kv) =
            (config.n_embd, config.inner(), config.query_width(), config.kv_width());
        let shift = |name: &str| (norm == Norm::Layer).then(|| ParamSpec::new(name, Bias, &[d]));
        let bias = |there: bool, name: &str, width: usize| {
            there.then(|| ParamSpec::new(name, Bias, &[width]))
        };
        let (q_norm, k_norm) = config.qk_norm_widths().unzip();
        let normed =
            |name: &str, width: Option<usize>| width.map(|w| ParamSpec::new(name, Scale, &[w]));
        Self {
            ln_1_w: ParamSpec::new("ln_1.weight", Scale, &[d]),
            ln_1_b: shift("ln_1.bias"),
            attn_w: ParamSpec::new("attn.c_attn.weight", Matrix, &[d, q + 2 * kv]),
            attn_b: bias(biases.qkv, "attn.c_attn.bias", q + 2 * kv),
            q_norm_w: normed("attn.q_norm.weight", q_norm),
            k_norm_w: normed("attn.k_norm.weight", k_norm),
            attn_proj_w: ParamSpec::new("attn.c_proj.weight", ResidualMatrix, &[q, d]),
            attn_proj_b: bias(biases.output, "attn.c_proj.bias", d),
            ln_2_w: ParamSpec::new("ln_2.weight", Scale, &[d]),
            ln_2_b: shift("ln_2.bias"),
            fc_w: ParamSpec::new("mlp.c_fc.weight", Matrix, &[d, config.mlp_width()]),
            fc_b: bias(biases.mlp, "mlp.c_fc.bias", config.mlp_width()),
            proj_w: ParamSpec::new("mlp.c_proj.weight", ResidualMatrix, &[f, d]),
            proj_b: bias(biases.mlp, "mlp.c_proj.bias", d),
        }
    }
}

/// What stands before and behind the blocks.
struct Around {
    wte: ParamSpec,
    wpe: Option<ParamSpec>,
    ln_f_w: ParamSpec,
    ln_f_b: Option<ParamSpec>,
    head: Option<ParamSpec>,
}

impl Around {
    fn new(config: &Gpt2Config) -> Self {
        let d = config.n_embd;
        let (vocabulary, positions) = ([config.vocab_size, d], [config.n_positions, d]);
        let with_shift = config.parts.norm == Norm::Layer;
        Self {
            wte: ParamSpec::new("wte.weight", ParamKind::Embedding, &vocabulary),
            wpe: config
                .learns_positions()
                .then(|| ParamSpec::new("wpe.weight", ParamKind::Position, &positions)),
            ln_f_w: ParamSpec::new("ln_f.weight", ParamKind::Norm, &[d]),
            ln_f_b: with_shift.then(|| ParamSpec::new("ln_f.bias", ParamKind::Bias, &[d])),
            head: (config.parts.own_head)
                .then(|| ParamSpec::new("lm_head.weight", ParamKind::Head, &vocabulary)),
        }
    }

    fn specs(self) -> impl Iterator<Item = ParamSpec> {
        let Self { wte, wpe, ln_f_w, ln_f_b, head } = self;
        [Some(wte), wpe, Some(ln_f_w), ln_f_b, head].into_iter().flatten()
    }
}

impl Gpt2Config {
    /// Number of parameters, the tied head counted once.
    pub fn parameters(&self) -> usize {
        self.elements(|_| true)
    }

    /// Elements of all parameters of the kinds that `counts` names. Takes no list of blocks, of
    /// which there may be many.
    pub fn elements(&self, counts: impl Fn(ParamKind) -> bool) -> usize {
        let around = Around::new(self)
            .specs()
            .filter(|spec| counts(spec.kind))
            .map(|spec| spec.elements())
            .sum::<usize>();
        around + self.n_layer * self.block_elements(counts)
    }

    /// Elements of one block's parameters of the kinds that `counts` names. Of its matrices
    /// ([`ParamKind::is_matrix`]) that is the number of multiply-adds per token.
    pub fn block_elements(&self, counts: impl Fn(ParamKind) -> bool) -> usize {
        let mut elements = 0;
        BlockOf::new(self)
            .map(|spec| elements += if counts(spec.kind) { spec.elements() } else { 0 });
        elements
    }
}

/// Names, shapes, kinds and order of a model's parameters; a pure function of the shape.
///
/// A tied head is `wte.weight` and has no entry of its own.
#[derive(Debug, Clone, PartialEq)]
pub struct Layout {
    entries: Vec<ParamSpec>,
    // Where each parameter stands in `entries`.
    wte: usize,
    wpe: Option<usize>,
    blocks: Vec<BlockOf<usize>>,
    ln_f_w: usize,
    ln_f_b: Option<usize>,
    head: Option<usize>,
}

impl Layout {
    /// The list for a shape.
    pub fn new(config: &Gpt2Config) -> Self {
        let mut entries = Vec::new();
        let mut push = |spec: ParamSpec| {
            entries.push(spec);
            entries.len() - 1
        };
        let Around { wte, wpe, ln_f_w, ln_f_b, head } = Around::new(config);
        let (wte, wpe) = (push(wte), wpe.map(&mut push));
        let block = BlockOf::new(config);
        let blocks = (0..config.n_layer)
            .map(|l| {
                block
                    .clone()
                    .map(|spec| push(ParamSpec { name: format!("h.{l}.{}", spec.name), ..spec }))
            })
            .collect();
        let (ln_f_w, ln_f_b) = (push(ln_f_w), ln_f_b.map(&mut push));
        let head = head.map(&mut push);
        Self { entries, wte, wpe, blocks, ln_f_w, ln_f_b, head }
    }

    /// Every parameter in storage order: that of checkpoints, of gradients and of the optimizer.
    pub fn entries(&self) -> &[ParamSpec] {
        &self.entries
    }

    /// How many blocks there are.
    pub fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// The entries of block `l`; of the block after the last, where those of the final norm begin.
    pub fn block(&self, l: usize) -> Range<usize> {
        let first = self.wte + 1 + usize::from(self.wpe.is_some());
        let each = (self.ln_f_w - first) / self.blocks().max(1);
        first + l * each..(first + (l + 1) * each).min(self.ln_f_w)
    }
}

/// One tensor per entry of a [`Layout`], all on one device. Cloning shares the storage.
#[derive(Debug, Clone)]
pub struct ParamSet {
    layout: Layout,
    tensors: Vec<Tensor>,
}

impl ParamSet {
    /// Takes tensors in the layout's order. Panics only on a caller's bug: a count that differs
    /// from the layout's.
    pub fn new(layout: Layout, tensors: Vec<Tensor>) -> Self {
        assert_eq!(layout.entries.len(), tensors.len(), "one tensor per layout entry");
        Self { layout, tensors }
    }

    /// All zeros: fresh gradients or moments.
    pub fn zeros(layout: &Layout, dtype: DType, device: &Device) -> Result<Self> {
        let zeros = |spec: &ParamSpec| Tensor::zeros(spec.shape.as_slice(), dtype, device);
        let tensors = layout.entries.iter().map(zeros).collect::<candle_core::Result<_>>()?;
        Ok(Self::new(layout.clone(), tensors))
    }

    /// Adds the elements of `other`, of the same layout.
    pub fn add_assign(&self, other: &Self) -> Result<()> {
        self.add_assign_of(other, 0..self.tensors.len())
    }

    /// The same of some parameters, by their places in the layout.
    pub fn add_assign_of(&self, other: &Self, parameters: Range<usize>) -> Result<()> {
        self.beside(
            other,
            parameters,
            |a, b| a.iter_mut().zip(b).for_each(|(a, b)| *a += b),
            buffer::add_assign,
        )
    }

    /// Takes the elements of `other`, of the same layout.
    pub fn assign(&self, other: &Self) -> Result<()> {
        self.beside(other, 0..self.tensors.len(), <[f32]>::copy_from_slice, buffer::assign)
    }

    /// Sets every element to zero.
    pub fn zero(&self) -> Result<()> {
        Ok(self.tensors.iter().try_for_each(Tensor::zero_set)?)
    }

    /// Does `on_cpu` to pieces of some of this set's tensors beside those of another, or `elsewhere` to
    /// whole ones.
    fn beside(
        &self,
        other: &Self,
        parameters: Range<usize>,
        on_cpu: impl Fn(&mut [f32], &[f32]) + Sync,
        elsewhere: impl Fn(&Tensor, &Tensor) -> Result<()>,
    ) -> Result<()> {
        for (mine, other) in self.tensors[parameters.clone()].iter().zip(&other.tensors[parameters])
        {
            if Backend::of(mine) != Backend::Cpu {
                elsewhere(mine, other)?;
                continue;
            }
            let other = buffer::read(other)?;
            buffer::with_mut(mine, |mine| {
                let pieces = mine.par_chunks_mut(PAGES).zip(other.par_chunks(PAGES));
                pieces.for_each(|(mine, other)| on_cpu(mine, other));
            })?;
        }
        Ok(())
    }

    /// Writes `value` into every element on the CPU. After [`ParamSet::zeros`] this takes the memory,
    /// which the system gives when it is first written, and a first step would wait for.
    pub(crate) fn fill(&self, value: f32) -> Result<()> {
        for tensor in self.tensors.iter().filter(|tensor| Backend::of(tensor) == Backend::Cpu) {
            buffer::with_mut(tensor, |all| {
                all.par_chunks_mut(PAGES).for_each(|part| part.fill(value));
            })?;
        }
        Ok(())
    }

    /// The same parameters with the factors of products ([`ParamKind::is_factor`]) stored in
    /// `dtype`; positions, norms and biases stay as they are. Takes one tensor after the other, so
    /// that both copies of one are all that is held.
    pub fn with_factors_in(self, dtype: DType) -> Result<Self> {
        let Self { layout, tensors } = self;
        let stored = tensors.into_iter().zip(&layout.entries).map(|(tensor, spec)| {
            Ok(if spec.kind.is_factor() { tensor.to_dtype(dtype)? } else { tensor })
        });
        let tensors = stored.collect::<Result<_>>()?;
        Ok(Self { layout, tensors })
    }

    /// Names, shapes, kinds and order.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The tensors in the layout's order.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// (name, tensor) in the layout's order.
    pub fn named(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.layout.entries.iter().map(|spec| spec.name.as_str()).zip(&self.tensors)
    }

    /// Token embedding, `[V, D]`.
    pub fn wte(&self) -> &Tensor {
        &self.tensors[self.layout.wte]
    }

    /// The head (output layer), `[V, D]`: a matrix of its own, or the token embedding.
    pub fn head(&self) -> &Tensor {
        &self.tensors[self.layout.head.unwrap_or(self.layout.wte)]
    }

    /// Learned positions, `[n_positions, D]`.
    pub fn wpe(&self) -> Option<&Tensor> {
        self.layout.wpe.map(|place| &self.tensors[place])
    }

    /// Scale of the final norm, `[D]`.
    pub fn ln_f_w(&self) -> &Tensor {
        &self.tensors[self.layout.ln_f_w]
    }

    /// Shift of the final norm, `[D]`.
    pub fn ln_f_b(&self) -> Option<&Tensor> {
        self.layout.ln_f_b.map(|place| &self.tensors[place])
    }

    /// The parameters of block `l`.
    pub fn block(&self, l: usize) -> Block<'_> {
        self.layout.blocks[l].map(|place| &self.tensors[place])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> Layout {
        Layout::new(&Gpt2Config { n_inner: Some(7), ..Gpt2Config::new(11, 5, 6, 2, 3) })
    }

    #[test]
    fn entries_stand_in_the_order_of_files() {
        let names: Vec<String> = layout().entries.into_iter().map(|spec| spec.name).collect();
        let of_block = |l: usize| {
            let parts = ["ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"];
            parts
                .into_iter()
                .flat_map(move |part| ["weight", "bias"].map(|end| format!("h.{l}.{part}.{end}")))
        };
        let around = |names: [&str; 2]| names.map(str::to_string);
        let first = around(["wte.weight", "wpe.weight"]).into_iter();
        let want =
            first.chain((0..2).flat_map(of_block)).chain(around(["ln_f.weight", "ln_f.bias"]));
        assert_eq!(names, want.collect::<Vec<_>>());
    }

    #[test]
    fn a_parameter_is_found_where_its_name_stands() {
        let layout = layout();
        // Each tensor holds its own place in the list.
        let tensors = (0..layout.entries.len())
            .map(|i| Tensor::new(i as u32, &Device::Cpu).unwrap())
            .collect();
        let set = ParamSet::new(layout, tensors);
        let name = |t: &Tensor| {
            set.layout().entries()[t.to_scalar::<u32>().unwrap() as usize].name.clone()
        };
        assert_eq!([set.wte(), set.wpe().unwrap()].map(name), ["wte.weight", "wpe.weight"]);
        assert_eq!([set.ln_f_w(), set.ln_f_b().unwrap()].map(name), ["ln_f.weight", "ln_f.bias"]);
        assert_eq!(name(set.head()), "wte.weight");
        let b = set.block(1);
        let norms = [b.ln_1_w, b.ln_1_b.unwrap(), b.ln_2_w, b.ln_2_b.unwrap()].map(name);
        assert_eq!(norms, ["h.1.ln_1.weight", "h.1.ln_1.bias", "h.1.ln_2.weight", "h.1.ln_2.bias"]);
        let attention =
            [b.attn_w, b.attn_b.unwrap(), b.attn_proj_w, b.attn_proj_b.unwrap()].map(name);
        let want =
            ["attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight", "attn.c_proj.bias"];
        assert_eq!(attention, want.map(|n| format!("h.1.{n}")));
        let mlp = [b.fc_w, b.fc_b.unwrap(), b.proj_w, b.proj_b.unwrap()].map(name);
        let want = ["mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"];
        assert_eq!(mlp, want.map(|n| format!("h.1.{n}")));
    }

    #[test]
    fn kinds_agree_with_ranks_and_names_of_gpt2() {
        // The rules of thumb that hold for GPT-2: what has two dimensions decays, biases say so,
        // projections end in c_proj.
        for spec in layout().entries() {
            let (name, kind) = (spec.name.as_str(), spec.kind);
            assert_eq!(kind.decays(), spec.shape.len() == 2, "{name}");
            assert_eq!(kind == ParamKind::Bias, name.ends_with(".bias"), "{name}");
            assert_eq!(
                kind == ParamKind::ResidualMatrix,
                name.ends_with("c_proj.weight"),
                "{name}"
            );
            assert_eq!(kind.is_factor(), spec.shape.len() == 2 && name != "wpe.weight", "{name}");
            assert_eq!(kind.is_matrix(), spec.shape.len() == 2 && name.starts_with("h."), "{name}");
        }
    }

    #[test]
    fn counts_are_those_of_the_list() {
        let config = Gpt2Config { n_inner: Some(7), ..Gpt2Config::new(11, 5, 6, 2, 3) };
        let count = |counts: fn(ParamKind) -> bool| -> usize {
            layout().entries.iter().filter(|spec| counts(spec.kind)).map(ParamSpec::elements).sum()
        };
        for counts in [|_| true, ParamKind::decays, ParamKind::is_factor, ParamKind::is_matrix] {
            assert_eq!(config.elements(counts), count(counts));
        }
        // D x 3 D, D x D, D x F and F x D.
        assert_eq!(config.block_elements(ParamKind::is_matrix), 6 * 18 + 6 * 6 + 2 * 6 * 7);
    }
}
