//! Convolutions and what goes with them, one image at a time, channels first.

use super::functions::Elementary;
use super::products::{Matrix, product};

/// A window that moves over an image: of the input (height, width) and of the output.
#[derive(Clone, Debug, PartialEq)]
pub struct Window {
    pub input: [usize; 2],
    pub output: [usize; 2],
    pub kernel: [usize; 2],
    pub stride: [usize; 2],
    pub padding: [usize; 2],
    pub dilation: [usize; 2],
}

impl Window {
    /// Whether it has the input's and output's sizes: each output pixel begins inside the padded
    /// input, and strides are not 0.
    pub fn sound(&self) -> bool {
        (0..2).all(|i| {
            let reach = self.dilation[i].checked_mul(self.kernel[i].wrapping_sub(1));
            let room = self.padding[i].checked_mul(2).and_then(|p| p.checked_add(self.input[i]));
            let last = self.output[i].wrapping_sub(1).checked_mul(self.stride[i]);
            let positive = [self.input[i], self.output[i], self.kernel[i], self.stride[i]];
            positive.iter().all(|&n| n > 0 && n < 1 << 31)
                && matches!((reach, room, last), (Some(reach), Some(room), Some(last))
                    if last.checked_add(reach).is_some_and(|end| end < room))
        })
    }

    pub fn pixels(&self) -> usize {
        self.output[0] * self.output[1]
    }

    pub fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    fn plain(&self) -> bool {
        self.taps() == 1 && self.stride == [1, 1] && self.padding == [0, 0]
    }

    /// Where in the input the output's `o` looks with the kernel's `k`, along an axis.
    fn source(&self, axis: usize, o: usize, k: usize) -> Option<usize> {
        let at = o * self.stride[axis] + k * self.dilation[axis];
        at.checked_sub(self.padding[axis]).filter(|&at| at < self.input[axis])
    }

    /// The outputs along the width that look inside the image with the kernel's `k`.
    fn inside(&self, k: usize) -> std::ops::Range<usize> {
        let (stride, shift) = (self.stride[1], k * self.dilation[1]);
        let first = self.padding[1].saturating_sub(shift).div_ceil(stride).min(self.output[1]);
        let end = (self.input[1] + self.padding[1]).saturating_sub(shift).div_ceil(stride);
        first..end.clamp(first, self.output[1])
    }

    /// Call `each(column, line, from, n)` for every run of n pixels of the unfolded image: in the
    /// matrix of taps x pixels they begin at `line`, in the image at `from`, `stride` apart.
    fn runs(&self, channels: usize, mut each: impl FnMut(usize, Option<usize>, usize)) {
        let [height, width] = self.output;
        let mut line = 0;
        for channel in 0..channels {
            for ky in 0..self.kernel[0] {
                for kx in 0..self.kernel[1] {
                    let inside = self.inside(kx);
                    for oy in 0..height {
                        let start =
                            self.source(0, oy, ky).filter(|_| !inside.is_empty()).map(|iy| {
                                let ix = inside.start * self.stride[1] + kx * self.dilation[1];
                                (channel * self.input[0] + iy) * self.input[1] + ix
                                    - self.padding[1]
                            });
                        each(line, start, kx);
                        line += width;
                    }
                }
            }
        }
    }

    /// The image as a matrix of (channels taps) x pixels, zero where a tap is outside.
    fn unfold<T: Elementary>(&self, channels: usize, image: &[T], matrix: &mut Vec<T>) {
        matrix.resize(channels * self.taps() * self.pixels(), T::ZERO);
        let (width, stride) = (self.output[1], self.stride[1]);
        self.runs(channels, |line, start, kx| {
            let out = &mut matrix[line..line + width];
            let Some(start) = start else { return out.fill(T::ZERO) };
            let inside = self.inside(kx);
            out[..inside.start].fill(T::ZERO);
            out[inside.end..].fill(T::ZERO);
            let out = &mut out[inside];
            if stride == 1 {
                out.copy_from_slice(&image[start..][..out.len()]);
            } else {
                for (i, out) in out.iter_mut().enumerate() {
                    *out = image[start + i * stride];
                }
            }
        });
    }

    /// The transpose of `unfold`: what each tap holds is added to the pixel it looks at.
    fn fold<T: Elementary>(&self, channels: usize, matrix: &[T], image: &mut [T]) {
        let stride = self.stride[1];
        self.runs(channels, |line, start, kx| {
            let Some(start) = start else { return };
            let inside = self.inside(kx);
            let from = &matrix[line + inside.start..line + inside.end];
            for (i, &x) in from.iter().enumerate() {
                image[start + i * stride] += x;
            }
        });
    }
}

/// Channels in and out of a convolution, and in how many groups they are that do not mix.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Channels {
    pub input: usize,
    pub output: usize,
    pub groups: usize,
}

fn begin<T: Elementary>(out: &mut [T], bias: Option<&[T]>, pixels: usize) {
    match bias {
        Some(bias) => out.chunks_mut(pixels).zip(bias).for_each(|(out, &b)| out.fill(b)),
        None => out.fill(T::ZERO),
    }
}

/// One image by `weight` of output x (input / groups) x taps, plus the bias.
pub fn convolve<T: Elementary>(
    window: &Window,
    channels: Channels,
    image: &[T],
    (weight, bias): (&[T], Option<&[T]>),
    out: &mut [T],
    scratch: &mut Vec<T>,
) {
    let (pixels, groups) = (window.pixels(), channels.groups);
    let (into, from) = (channels.output / groups, channels.input / groups);
    let depth = from * window.taps();
    begin(out, bias, pixels);
    let area = window.input[0] * window.input[1];
    for group in 0..groups {
        let image = &image[group * from * area..][..from * area];
        let matrix = if window.plain() {
            image
        } else {
            window.unfold(from, image, scratch);
            &scratch[..]
        };
        product(
            &mut out[group * into * pixels..][..into * pixels],
            (into, depth, pixels),
            Matrix::rows(&weight[group * into * depth..], depth),
            Matrix::rows(matrix, pixels),
            true,
        );
    }
}

/// The transpose of a convolution, which `window` describes with input and output exchanged:
/// `weight` is input x (output / groups) x taps.
pub fn convolve_transposed<T: Elementary>(
    window: &Window,
    channels: Channels,
    image: &[T],
    (weight, bias): (&[T], Option<&[T]>),
    out: &mut [T],
    scratch: &mut Vec<T>,
) {
    let (pixels, groups) = (window.pixels(), channels.groups);
    let (into, from) = (channels.output / groups, channels.input / groups);
    let depth = into * window.taps();
    let area = window.input[0] * window.input[1];
    begin(out, bias, area);
    scratch.resize(depth * pixels, T::ZERO);
    for group in 0..groups {
        let weight = &weight[group * from * depth..][..from * depth];
        product(
            scratch,
            (depth, from, pixels),
            Matrix::rows(weight, depth).transposed(),
            Matrix::rows(&image[group * from * pixels..], pixels),
            false,
        );
        window.fold(into, scratch, &mut out[group * into * area..][..into * area]);
    }
}

/// The largest or the mean of what the window sees, channel by channel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pooling {
    Max,
    /// The mean over the whole kernel, padding counted as zeros.
    Mean,
    /// The mean over what lies inside the image.
    MeanInside,
}

impl Pooling {
    pub fn apply<T: Elementary>(self, window: &Window, image: &[T], out: &mut [T]) {
        let (area, pixels) = (window.input[0] * window.input[1], window.pixels());
        for (image, out) in image.chunks(area).zip(out.chunks_mut(pixels)) {
            for (i, out) in out.iter_mut().enumerate() {
                *out = self.at(window, image, [i / window.output[1], i % window.output[1]]);
            }
        }
    }

    fn at<T: Elementary>(self, window: &Window, image: &[T], [oy, ox]: [usize; 2]) -> T {
        let (mut sum, mut top, mut seen) = (T::ZERO, T::from_f64(f64::NEG_INFINITY), 0);
        for iy in (0..window.kernel[0]).filter_map(|k| window.source(0, oy, k)) {
            for ix in (0..window.kernel[1]).filter_map(|k| window.source(1, ox, k)) {
                let x = image[iy * window.input[1] + ix];
                sum += x;
                top = if x > top || x.is_nan() { x } else { top };
                seen += 1;
            }
        }
        match self {
            Pooling::Max => top,
            Pooling::Mean => sum / T::from_f64(window.taps() as f64),
            Pooling::MeanInside => sum / T::from_f64(f64::from(seen)),
        }
    }
}

/// Each pixel repeated `times` along height and width.
pub fn enlarge<T: Copy>(width: usize, times: [usize; 2], image: &[T], out: &mut [T]) {
    let wide = width * times[1];
    for (line, out) in image.chunks(width).zip(out.chunks_mut(wide * times[0])) {
        let (first, rest) = out.split_at_mut(wide);
        for (&x, out) in line.iter().zip(first.chunks_mut(times[1])) {
            out.fill(x);
        }
        rest.chunks_mut(wide).for_each(|out| out.copy_from_slice(first));
    }
}
