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

    /// The sides of an image with its padding.
    fn padded(&self) -> [usize; 2] {
        std::array::from_fn(|i| self.input[i] + 2 * self.padding[i])
    }

    /// A channel of an image with zeros around it, in lines of `wide` elements.
    fn pad<T: Elementary>(&self, image: &[T], padded: &mut [T], wide: usize) {
        let ([above, left], width) = (self.padding, self.input[1]);
        padded.fill(T::ZERO);
        let lines = padded.chunks_mut(wide).skip(above);
        for (line, out) in image.chunks(width).zip(lines) {
            out[left..left + width].copy_from_slice(line);
        }
    }

    /// What each tap shows of the padded image in some lines of the output: a matrix of
    /// (channels taps) x pixels, a line of which begins `wide` elements after the one before.
    fn unfold<T: Elementary>(
        &self,
        padded: &[T],
        lines: std::ops::Range<usize>,
        matrix: &mut [T],
        wide: usize,
    ) {
        // A length that is known beforehand makes a copy of a few moves.
        match (self.stride[1], self.output[1]) {
            (1, 4) => self.taps_of::<T, 4>(padded, lines, matrix, wide),
            (1, 8) => self.taps_of::<T, 8>(padded, lines, matrix, wide),
            (1, 16) => self.taps_of::<T, 16>(padded, lines, matrix, wide),
            (1, 32) => self.taps_of::<T, 32>(padded, lines, matrix, wide),
            _ => self.taps_of::<T, 0>(padded, lines, matrix, wide),
        }
    }

    /// The same for a width of W and a stride of 1, or for any where W is 0.
    fn taps_of<T: Elementary, const W: usize>(
        &self,
        padded: &[T],
        lines: std::ops::Range<usize>,
        matrix: &mut [T],
        wide: usize,
    ) {
        let [high, across] = self.padded();
        let width = if W > 0 { W } else { self.output[1] };
        let (down, right) = (self.stride[0] * across, self.stride[1]);
        let mut rows = matrix.chunks_mut(wide);
        for image in padded.chunks(high * across) {
            for ky in 0..self.kernel[0] {
                for kx in 0..self.kernel[1] {
                    let Some(row) = rows.next() else { return };
                    let first = lines.start * down + ky * self.dilation[0] * across;
                    let first = first + kx * self.dilation[1];
                    for (i, out) in row[..lines.len() * width].chunks_exact_mut(width).enumerate() {
                        let line = &image[first + i * down..];
                        if W > 0 || right == 1 {
                            out.copy_from_slice(&line[..width]);
                        } else {
                            out.iter_mut()
                                .zip(line.iter().step_by(right))
                                .for_each(|(o, &x)| *o = x);
                        }
                    }
                }
            }
        }
    }

    /// The transpose of `unfold`: what each tap holds is added to the pixel it looks at.
    fn fold<T: Elementary>(&self, matrix: &[T], image: &mut [T]) {
        let ([height, width], stride) = (self.output, self.stride[1]);
        let mut rows = matrix.chunks(height * width);
        for image in image.chunks_mut(self.input[0] * self.input[1]) {
            for ky in 0..self.kernel[0] {
                for kx in 0..self.kernel[1] {
                    let (Some(row), inside) = (rows.next(), self.inside(kx)) else { return };
                    let left = inside.start * stride + kx * self.dilation[1];
                    for (oy, line) in row.chunks(width).enumerate() {
                        let Some(iy) = self.source(0, oy, ky).filter(|_| !inside.is_empty()) else {
                            continue;
                        };
                        let at = iy * self.input[1] + left - self.padding[1];
                        for (i, &x) in line[inside.clone()].iter().enumerate() {
                            image[at + i * stride] += x;
                        }
                    }
                }
            }
        }
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

/// Pixels that a product should have at least: the library's kernels are as wide.
const WIDE: usize = 64;
/// Of their number they should have a multiple, or the library copies them once more.
const LANES: usize = 16;

/// How many times `pixels` a product should have, of `most`.
fn together(pixels: usize, most: usize) -> usize {
    let full = |n: &usize| n * pixels >= WIDE && (n * pixels).is_multiple_of(LANES);
    let least = WIDE.div_ceil(pixels);
    (least..=4 * least).find(full).unwrap_or(4 * least).min(most)
}

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
    let ([height, width], pixels, groups) = (window.output, window.pixels(), channels.groups);
    let (into, from) = (channels.output / groups, channels.input / groups);
    let (depth, size) = (from * window.taps(), channels.output * pixels);
    let area = window.input[0] * window.input[1];
    let padded =
        if window.padding == [0, 0] { 0 } else { from * window.padded().iter().product::<usize>() };
    // Some lines of a large image, or some small images whole.
    let lines = together(width, height);
    let count = if lines < height { 1 } else { together(pixels, (out.len() / size).max(1)) };
    let most = lines * width * count;
    scratch.resize(scratch.len().max((depth + into) * most + padded), T::ZERO);
    let (matrix, rest) = scratch.split_at_mut(depth * most);
    let (made, rest) = rest.split_at_mut(into * most);
    let padded = &mut rest[..padded];
    for (i, out) in out.chunks_mut(count * size).enumerate() {
        let (first, count) = (i * count, out.len() / size);
        for group in 0..groups {
            let image = |k: usize| &images(first + k)[group * from * area..][..from * area];
            let weight = Matrix::rows(&weight[group * into * depth..], depth);
            let bias = bias.map(|b| &b[group * into..][..into]);
            if count == 1 && window.plain() {
                let out = &mut out[group * into * pixels..][..into * pixels];
                begin(out, bias, pixels);
                let image = Matrix::rows(image(0), pixels);
                product((out, pixels), (into, depth, pixels), weight, image, true);
                continue;
            }
            for top in (0..height).step_by(lines) {
                let lines = top..(top + lines).min(height);
                let some = lines.len() * width;
                let wide = some * count;
                for k in 0..count {
                    let mut image = image(k);
                    if !padded.is_empty() {
                        let [high, wide] = window.padded();
                        for (image, padded) in
                            image.chunks(area).zip(padded.chunks_mut(high * wide))
                        {
                            window.pad(image, padded, wide);
                        }
                        image = padded;
                    }
                    window.unfold(image, lines.clone(), &mut matrix[k * some..depth * wide], wide);
                }
                let unfolded = Matrix::rows(&matrix[..depth * wide], wide);
                if count == 1 {
                    let out = &mut out[group * into * pixels..][..into * pixels];
                    if top == 0 {
                        begin(out, bias, pixels);
                    }
                    let out = &mut out[top * width..];
                    product((out, pixels), (into, depth, wide), weight, unfolded, true);
                    continue;
                }
                product((made, wide), (into, depth, wide), weight, unfolded, false);
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
            (scratch, pixels),
            (depth, from, pixels),
            Matrix::rows(weight, depth).transposed(),
            Matrix::rows(&image[group * from * pixels..], pixels),
            false,
        );
        window.fold(scratch, &mut out[group * into * area..][..into * area]);
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
            input in [1usize..20, 1usize..20], usual in any::<bool>(),
            kernel in [1usize..4, 1usize..4], stride in [1usize..3, 1usize..3],
            padding in [0usize..3, 0usize..3], dilation in [1usize..3, 1usize..3],
            from in 1usize..3, into in 1usize..4, groups in 1usize..3, rows in 1usize..20,
        ) {
            let (kernel, stride, dilation, groups) =
                if usual { ([3, 3], [1, 1], [1, 1], 1) } else { (kernel, stride, dilation, groups) };
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
            let image = |i: usize| &images[i * of_row..][..of_row];
            let expected: Vec<f64> = (0..rows * of_result)
                .map(|i| {
                    let (row, at) = (i / of_result, i % of_result);
                    let place = [at / (height * width), at / width % height, at % width];
                    by_definition(&window, channels, image(row), &weight, place)
                })
                .collect();
            let mut out = vec![f64::NAN; rows * of_result];
            // Scratch that holds something already.
            let mut scratch = vec![f64::NAN; 7];
            let weights = (&weight[..], Some(&bias[..]));
            convolve(&window, channels, image, weights, &mut out, &mut scratch);
            prop_assert_eq!(&out, &expected);
        }
    }
}
