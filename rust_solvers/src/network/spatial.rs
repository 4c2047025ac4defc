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
            positive.iter().all(|&n| n > 0 && n < 1 << 20)
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

    /// Whether a tap shows the image as it is, only moved.
    fn moves(&self) -> bool {
        self.stride == [1, 1] && self.input[1] == self.output[1]
    }

    /// Call `each(line, start, kx)` for every line of pixels of the unfolded image: in the matrix,
    /// `wide` elements a tap, it begins at `line`, in the image at `start`, unless it is outside.
    fn runs(
        &self,
        channels: usize,
        wide: usize,
        mut each: impl FnMut(usize, Option<usize>, usize),
    ) {
        let [height, width] = self.output;
        let mut tap = 0;
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
                        each(tap * wide + oy * width, start, kx);
                    }
                    tap += 1;
                }
            }
        }
    }

    /// The image as a matrix of (channels taps) x pixels, zero where a tap is outside; a line of the
    /// matrix begins `wide` elements after the one before.
    fn unfold<T: Elementary>(&self, channels: usize, image: &[T], matrix: &mut [T], wide: usize) {
        if self.moves() {
            let area = self.input[0] * self.input[1];
            for (tap, out) in matrix.chunks_mut(wide).enumerate().take(channels * self.taps()) {
                let (channel, k) = (tap / self.taps(), tap % self.taps());
                let k = [k / self.kernel[1], k % self.kernel[1]];
                self.moved(&image[channel * area..][..area], k, &mut out[..self.pixels()]);
            }
            return;
        }
        let (width, stride) = (self.output[1], self.stride[1]);
        self.runs(channels, wide, |line, start, kx| {
            let out = &mut matrix[line..line + width];
            let Some(start) = start else { return out.fill(T::ZERO) };
            let inside = self.inside(kx);
            out[..inside.start].fill(T::ZERO);
            out[inside.end..].fill(T::ZERO);
            for (i, out) in out[inside].iter_mut().enumerate() {
                *out = image[start + i * stride];
            }
        });
    }

    /// What a tap shows of one channel where windows only move: one run of the image, but for the
    /// columns that leave it.
    fn moved<T: Elementary>(&self, image: &[T], [ky, kx]: [usize; 2], out: &mut [T]) {
        let ([height, width], columns) = (self.output, self.inside(kx));
        let mut lines = (0..height).filter(|&oy| self.source(0, oy, ky).is_some());
        let Some(first) = lines.next().filter(|_| !columns.is_empty()) else {
            return out.fill(T::ZERO);
        };
        let end = lines.next_back().unwrap_or(first) + 1;
        let (from, to) = (first * width + columns.start, (end - 1) * width + columns.end);
        let row = first + ky * self.dilation[0] - self.padding[0];
        let start = row * width + columns.start + kx * self.dilation[1] - self.padding[1];
        out[from..to].copy_from_slice(&image[start..][..to - from]);
        out[..from].fill(T::ZERO);
        out[to..].fill(T::ZERO);
        for line in out.chunks_mut(width) {
            line[..columns.start].fill(T::ZERO);
            line[columns.end..].fill(T::ZERO);
        }
    }

    /// The transpose of `unfold`: what each tap holds is added to the pixel it looks at.
    fn fold<T: Elementary>(&self, channels: usize, matrix: &[T], image: &mut [T]) {
        let stride = self.stride[1];
        self.runs(channels, self.pixels(), |line, start, kx| {
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

/// Pixels that a product should have, of several images where they are small: its kernels are as wide.
const WIDE: usize = 256;
/// Elements that unfolded images may have to stay in a core's own cache.
const UNFOLDED: usize = 1 << 17;

/// Each image, of which `images(i)` gives the i-th, by `weight` of output x (input / groups) x taps,
/// plus the bias.
pub fn convolve<'a, T: Elementary>(
    window: &Window,
    channels: Channels,
    images: impl Fn(usize) -> &'a [T],
    (weight, bias): (&[T], Option<&[T]>),
    out: &mut [T],
    scratch: &mut Vec<T>,
) {
    let (pixels, groups) = (window.pixels(), channels.groups);
    let (into, from) = (channels.output / groups, channels.input / groups);
    let (depth, size) = (from * window.taps(), channels.output * pixels);
    let area = window.input[0] * window.input[1];
    let together = WIDE.div_ceil(pixels).min(UNFOLDED / (depth * pixels)).max(1);
    for (i, out) in out.chunks_mut(together * size).enumerate() {
        let (first, count) = (i * together, out.len() / size);
        let wide = count * pixels;
        let room = (depth + into) * wide;
        scratch.resize(scratch.len().max(room), T::ZERO);
        let (matrix, made) = scratch[..room].split_at_mut(depth * wide);
        for group in 0..groups {
            let image = |k: usize| &images(first + k)[group * from * area..][..from * area];
            let weight = Matrix::rows(&weight[group * into * depth..], depth);
            let bias = bias.map(|b| &b[group * into..][..into]);
            let shape = (into, depth, wide);
            if count == 1 && window.plain() {
                let out = &mut out[group * into * pixels..][..into * pixels];
                begin(out, bias, pixels);
                product(out, shape, weight, Matrix::rows(image(0), pixels), true);
                continue;
            }
            for k in 0..count {
                window.unfold(from, image(k), &mut matrix[k * pixels..], wide);
            }
            product(made, shape, weight, Matrix::rows(matrix, wide), false);
            for (k, out) in out.chunks_mut(size).enumerate() {
                let out = out[group * into * pixels..].chunks_mut(pixels).take(into);
                for (channel, out) in out.enumerate() {
                    let shift = bias.map_or(T::ZERO, |b| b[channel]);
                    let made = &made[channel * wide + k * pixels..];
                    out.iter_mut().zip(made).for_each(|(out, &x)| *out = x + shift);
                }
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn number(i: usize) -> f64 {
        ((i * 37) % 11) as f64 - 5.0
    }

    /// A convolution by its definition, on small whole numbers: any order of its sums gives the same.
    fn by_definition(
        window: &Window,
        channels: Channels,
        image: &[f64],
        weight: &[f64],
        [channel, oy, ox]: [usize; 3],
    ) -> f64 {
        let (into, from) = (channels.output / channels.groups, channels.input / channels.groups);
        let mut sum = number(channel);
        for c in 0..from {
            for ky in 0..window.kernel[0] {
                for kx in 0..window.kernel[1] {
                    let (Some(iy), Some(ix)) = (window.source(0, oy, ky), window.source(1, ox, kx))
                    else {
                        continue;
                    };
                    let tap =
                        ((channel * from + c) * window.kernel[0] + ky) * window.kernel[1] + kx;
                    let at = (channel / into * from + c) * window.input[0] + iy;
                    sum += weight[tap] * image[at * window.input[1] + ix];
                }
            }
        }
        sum
    }

    proptest! {
        #[test]
        fn a_convolution_is_its_definition(
            input in [1usize..9, 1usize..9], kernel in [1usize..4, 1usize..4],
            stride in [1usize..3, 1usize..3], padding in [0usize..3, 0usize..3],
            dilation in [1usize..3, 1usize..3],
            from in 1usize..3, into in 1usize..4, groups in 1usize..3, rows in 1usize..5,
        ) {
            let output: [Option<usize>; 2] = std::array::from_fn(|i| {
                let reach = dilation[i] * (kernel[i] - 1) + 1;
                (input[i] + 2 * padding[i]).checked_sub(reach).map(|room| room / stride[i] + 1)
            });
            let [Some(height), Some(width)] = output else { return Ok(()) };
            let window = Window { input, output: [height, width], kernel, stride, padding, dilation };
            prop_assert!(window.sound());
            let channels = Channels { input: from * groups, output: into * groups, groups };
            let of_row = channels.input * input[0] * input[1];
            let images: Vec<f64> = (0..rows * of_row).map(number).collect();
            let weight: Vec<f64> =
                (0..channels.output * from * window.taps()).map(|i| number(i + 3)).collect();
            let bias: Vec<f64> = (0..channels.output).map(number).collect();
            let of_result = channels.output * height * width;
            let mut out = vec![f64::NAN; rows * of_result];
            // Scratch that holds something already.
            let mut scratch = vec![f64::NAN; 7];
            let image = |i: usize| &images[i * of_row..][..of_row];
            let weights = (&weight[..], Some(&bias[..]));
            convolve(&window, channels, image, weights, &mut out, &mut scratch);
            for (i, &found) in out.iter().enumerate() {
                let (row, at) = (i / of_result, i % of_result);
                let place = [at / (height * width), at / width % height, at % width];
                let expected = by_definition(&window, channels, image(row), &weight, place);
                prop_assert_eq!(found, expected);
            }
        }
    }
}
