//! A model's parameters as they lie on disk: which rows of which tensors make each, checked before a byte is read.

use super::adapter::Delta;
use super::cut::Cut;
use super::tensors::{Tensor, Tensors, widen};
use crate::base::{DType, Shape, TensorType, packed};
use crate::error::{Error, Result};
use crate::model::Source;
use crate::nn::ParamSpec;
use rayon::prelude::*;
use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;

/// After so many missing tensors no more are looked for.
const MANY: usize = 10_000;

/// What a model looks for in its tensors.
pub(super) struct Wanted<'a> {
    /// Where the file keeps a parameter.
    pub sources: &'a dyn Fn(&str) -> Vec<Source>,
    /// Tensors that may stand in the file though no parameter is made of them.
    pub ignored: &'a dyn Fn(&str) -> bool,
    /// What says how the model is built, for messages: config.json, or the file's metadata.
    pub config: &'a str,
}

/// Rows of a tensor.
#[derive(Debug)]
struct Piece<'a> {
    tensor: Tensor<'a>,
    dtype: DType,
    rows: Range<usize>,
    interleaved_heads: Option<usize>,
}

/// A parameter on disk.
#[derive(Debug)]
pub(super) struct Weight<'a> {
    pub name: &'a str,
    pub shape: &'a Shape,
    /// The dtype of all that it is made of; f32 where that differs.
    pub dtype: DType,
    /// True if its rows are to be scaled to unit length as they are read. They are f32 then, whatever they were.
    pub unit: bool,
    /// What an adapter adds to its rows as they are read.
    pub delta: Option<Delta>,
    /// Which rows and columns are read, if that is not all.
    pub cut: Option<Cut>,
    pieces: Vec<Piece<'a>>,
}

impl Tensors {
    /// Finds every parameter, and refuses a file that lacks one or holds more.
    pub(super) fn find<'a>(&'a self, specs: &'a [ParamSpec], wanted: &Wanted<'_>) -> Result<Vec<Weight<'a>>> {
        let (mut names, mut missing) = (HashSet::new(), Vec::new());
        for source in specs.iter().flat_map(|s| (wanted.sources)(&s.name)) {
            if self.get(&source.tensor).is_none() {
                missing.push(source.tensor);
            } else {
                names.insert(source.tensor);
            }
            // A configuration may claim millions of experts; nobody wants to wait until all of them are missed.
            if missing.len() == MANY {
                break;
            }
        }
        missing.sort_unstable();
        let config = wanted.config;
        let missing: Vec<&str> = missing.iter().map(String::as_str).collect();
        self.refuse("lacks", &missing, &format!("these are not the weights of this {config}"))?;
        let extra: Vec<&str> =
            self.iter().map(|t| t.name).filter(|n| !names.contains(*n) && !(wanted.ignored)(n)).collect();
        self.refuse("holds more than the model has:", &extra, &format!("this {config} describes another model"))?;
        specs.iter().map(|spec| self.weight(spec, &(wanted.sources)(&spec.name), config)).collect()
    }

    fn refuse(&self, verb: &str, names: &[&str], why: &str) -> Result<()> {
        let Some(first) = names.first() else { return Ok(()) };
        let more = if names.len() > 1 { format!(" and {} more", names.len() - 1) } else { String::new() };
        Err(Error::file(self.path(), format!("{verb} tensor {first}{more}; {why}")))
    }

    fn weight<'a>(&'a self, spec: &'a ParamSpec, sources: &[Source], config: &str) -> Result<Weight<'a>> {
        let shape = &spec.shape;
        let mut pieces = Vec::new();
        for source in sources {
            let tensor = self.get(&source.tensor).expect("none is missing");
            let dtype = tensor.dtype()?;
            if tensor.shape.rank() == 1 && dtype.block().elements > 2 {
                return Err(tensor.fail(format!("is a vector of {dtype}; vectors are f32, f16 or bf16")));
            }
            let count = tensor.row_count();
            let rows = source.rows.clone().unwrap_or(0..count);
            if rows.start >= rows.end || rows.end > count {
                return Err(tensor.fail(format!("has {count} rows where {} to {} are wanted", rows.start, rows.end)));
            }
            if source.interleaved_heads.is_some_and(|heads| heads == 0 || rows.len() % (2 * heads) != 0) {
                return Err(tensor.fail(format!("has {} rows, which are no even number a head", rows.len())));
            }
            pieces.push(Piece { tensor, dtype, rows, interleaved_heads: source.interleaved_heads });
        }
        let wrong = |have: String| {
            let file = pieces.first().map_or(self.path(), |p| p.tensor.file);
            let name = sources.first().map_or(spec.name.as_str(), |s| s.tensor.as_str());
            let message = format!("tensor {name} is {have} where {config} says {shape}; one of the two is wrong");
            Error::file(file, message)
        };
        let (rows, width) = if shape.rank() == 1 { (shape.last(), 1) } else { (shape.rows(), shape.last()) };
        let fits = |p: &Piece| p.tensor.shape.elements() / p.tensor.row_count() == width;
        match pieces.as_slice() {
            [one] if one.rows.len() == one.tensor.row_count() && one.tensor.shape != shape => {
                return Err(wrong(one.tensor.shape.to_string()));
            }
            many if !many.iter().all(fits) || many.iter().map(|p| p.rows.len()).sum::<usize>() != rows => {
                let parts: Vec<String> =
                    many.iter().map(|p| format!("{} rows of {}", p.rows.len(), p.tensor.shape)).collect();
                return Err(wrong(parts.join(" and ")));
            }
            _ => {}
        }
        let first = pieces.first().map_or(DType::F32, |p| p.dtype);
        let dtype = if pieces.iter().all(|p| p.dtype == first) { first } else { DType::F32 };
        Ok(Weight { name: &spec.name, shape, dtype, unit: false, delta: None, cut: None, pieces })
    }
}

impl Weight<'_> {
    /// Its type where its own dtype is kept.
    pub fn ty(&self) -> TensorType {
        TensorType { shape: self.shape.clone(), dtype: self.dtype }
    }

    /// Number of rows; a vector's are its elements.
    pub fn rows(&self) -> usize {
        match &self.cut {
            Some(cut) => cut.count(),
            None => self.whole_rows(),
        }
    }

    /// The same of all of it.
    pub fn whole_rows(&self) -> usize {
        self.pieces.iter().map(|p| p.rows.len()).sum()
    }

    /// Elements of a row.
    pub fn width(&self) -> usize {
        let whole = if self.shape.rank() == 1 { 1 } else { self.shape.last() };
        self.cut.as_ref().map_or(whole, |cut| cut.columns.len())
    }

    /// One of its rows as the file has it: dtype and bytes.
    pub fn row(&self, row: usize) -> (DType, &[u8]) {
        let Some(cut) = &self.cut else { return self.whole_row(row) };
        let (dtype, bytes) = self.whole_row(cut.row(row));
        (dtype, cut.bytes(dtype, bytes))
    }

    fn whole_row(&self, mut row: usize) -> (DType, &[u8]) {
        for piece in &self.pieces {
            if row < piece.rows.len() {
                let stored =
                    piece.rows.start + piece.interleaved_heads.map_or(row, |h| stored_row(row, piece.rows.len() / h));
                return (piece.dtype, piece.tensor.rows(stored..stored + 1));
            }
            row -= piece.rows.len();
        }
        unreachable!("a row beyond the last")
    }

    /// The numbers of one of its rows.
    pub fn values(&self, row: usize, out: &mut [f32]) {
        match &self.cut {
            None => self.whole_values(row, out),
            Some(cut) if cut.columns.len() == self.shape.last() || self.shape.rank() == 1 => {
                self.whole_values(cut.row(row), out)
            }
            Some(cut) => {
                let mut whole = vec![0.0; self.shape.last()];
                self.whole_values(cut.row(row), &mut whole);
                out.copy_from_slice(&whole[cut.columns.clone()]);
            }
        }
    }

    /// The numbers of a row of all of it.
    pub fn whole_values(&self, row: usize, out: &mut [f32]) {
        let (dtype, bytes) = self.whole_row(row);
        widen(dtype, bytes, out);
        if let Some(delta) = &self.delta {
            delta.add(row, out);
        }
        if self.unit {
            // As torch.nn.functional.normalize, by which Baichuan 2's own code does it: rows of zeros stay zeros.
            let length = out.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt().max(1e-12);
            out.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
        }
    }

    /// True if what is read of it are other numbers than those of the file.
    pub fn is_changed(&self) -> bool {
        self.unit || self.delta.is_some()
    }

    /// The file that holds the first of its rows.
    pub fn file(&self) -> &Path {
        self.pieces[0].tensor.file
    }

    /// Refuses a file of it that was cut short since it was opened.
    pub fn check_whole(&self) -> Result<()> {
        self.pieces.iter().try_for_each(|piece| piece.tensor.check_whole())
    }

    /// Some rows in the device's form of `dtype`: the weight's own, or f32. `out` has room for just these.
    pub fn write(&self, rows: Range<usize>, dtype: DType, out: &mut [u8]) {
        let bytes = out.len() / rows.len();
        debug_assert!(!self.is_changed() || dtype == DType::F32, "rows that are changed are f32");
        out.par_chunks_exact_mut(bytes).with_min_len(16).zip(rows.into_par_iter().with_min_len(16)).for_each(
            |(out, row)| match self.row(row) {
                (stored, from) if stored == dtype && dtype != DType::F32 && !self.is_changed() => {
                    packed::to_device(dtype, from, out)
                }
                (DType::F32, from) if !self.is_changed() => out.copy_from_slice(from),
                _ => match bytemuck::try_cast_slice_mut(out) {
                    Ok(wide) => self.values(row, wide),
                    // Staging memory need not be aligned.
                    Err(_) => {
                        let mut wide = vec![0.0; out.len() / 4];
                        self.values(row, &mut wide);
                        out.copy_from_slice(bytemuck::cast_slice(&wide));
                    }
                },
            },
        );
    }
}

/// Where the row that we keep at `row` stands in heads of `width` rows stored for interleaved rotation.
pub(super) fn stored_row(row: usize, width: usize) -> usize {
    let (head, at) = (row / width, row % width);
    let (half, i) = (at / (width / 2), at % (width / 2));
    head * width + 2 * i + half
}

/// The inverse: where the row that is stored at `row` stands with us.
pub(super) fn kept_row(row: usize, width: usize) -> usize {
    let (head, at) = (row / width, row % width);
    head * width + at % 2 * (width / 2) + at / 2
}
