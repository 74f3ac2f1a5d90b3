//! Tensors of a file by name and shape, and those that are small as floats.

use crate::gguf::{Gguf, TensorInfo};
use crate::model::tensors::Tensors;
use crate::model::{ModelError, format_of};
use kernels::format::Format;

pub(super) fn find<'a>(
    gguf: &'a Tensors<'_>,
    name: &str,
    wanted: &[u64],
) -> Result<&'a TensorInfo, ModelError> {
    let tensor = gguf.tensor(name).ok_or_else(|| ModelError::MissingTensor { name: name.to_owned() })?;
    if trimmed(&tensor.info.shape) != trimmed(wanted) {
        let (found, wanted) = (tensor.info.shape.clone(), wanted.to_vec());
        return Err(ModelError::TensorShape { name: name.to_owned(), found, wanted });
    }
    gguf.note(name);
    Ok(tensor.info)
}

/// A shape without its trailing ones.
fn trimmed(shape: &[u64]) -> &[u64] {
    let dims = shape.iter().rev().skip_while(|&&d| d == 1).count();
    &shape[..dims]
}

pub(super) fn optional_floats(
    gguf: &Tensors<'_>,
    name: &str,
    len: usize,
) -> Result<Option<Vec<f32>>, ModelError> {
    if gguf.tensor(name).is_none() { Ok(None) } else { floats(gguf, name, len).map(Some) }
}

/// A vector of any format that is decoded to floats.
pub(super) fn floats(gguf: &Tensors<'_>, name: &str, len: usize) -> Result<Vec<f32>, ModelError> {
    let info = find(gguf, name, &[len as u64])?;
    decoded(gguf, info)
}

/// A number for each of `count` heads, as a row of them or a column.
pub(super) fn one_each(gguf: &Tensors<'_>, name: &str, count: usize) -> Result<Vec<f32>, ModelError> {
    match find(gguf, name, &[1, count as u64]) {
        Ok(info) => decoded(gguf, info),
        Err(_) => floats(gguf, name, count),
    }
}

/// `count` vectors of `len`, one after the other.
pub(super) fn optional_matrix_of_floats(
    gguf: &Tensors<'_>,
    name: &str,
    len: usize,
    count: usize,
) -> Result<Option<Vec<f32>>, ModelError> {
    if gguf.tensor(name).is_none() {
        return Ok(None);
    }
    decoded(gguf, find(gguf, name, &[len as u64, count as u64])?).map(Some)
}

pub(super) fn decoded(gguf: &Gguf, info: &TensorInfo) -> Result<Vec<f32>, ModelError> {
    let format = format_of(info.ty).ok_or_else(|| unknown_format(&info.name, info))?;
    let mut out = vec![0.0; info.elements() as usize];
    format.dequantize_row(gguf.data(info), &mut out);
    Ok(out)
}

pub(super) fn unknown_format(name: &str, info: &TensorInfo) -> ModelError {
    ModelError::UnknownFormat {
        name: name.to_owned(),
        format: info.ty.name(),
        known: Format::ALL.map(Format::name).join(", "),
    }
}
