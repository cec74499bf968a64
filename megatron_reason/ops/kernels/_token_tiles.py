"""The Triton programs of `token_stats.py`: tiles of logits that never leave the registers.

T tokens, D hidden width, V vocabulary columns of this rank, R pieces that the columns are cut into.
Not here: how they are launched, and the maths itself, whose definition is `ops/rows.py`.
"""
# Triton's own calling convention: pointers and sizes one by one, types known only to its compiler.
# ruff: noqa: ANN001, ANN202, PLR0913, PLR0915
# pyright: reportMissingParameterType=false

import triton
import triton.language as tl


@triton.jit
def _logits_tile(
    hidden, weight, token, column, num_tokens, num_columns, width, temperature,
    depth: tl.constexpr, wide: tl.constexpr, upcast: tl.constexpr,
):  # fmt: skip
    """[tokens, columns] logits; -inf beyond the last real column."""
    tile = tl.zeros((token.shape[0], column.shape[0]), wide)
    for begin in range(0, width, depth):
        place = begin + tl.arange(0, depth)
        is_wide = place < width
        left = tl.load(
            hidden + token[:, None] * width + place[None, :],
            mask=(token < num_tokens)[:, None] & is_wide[None, :], other=0.0,
        )  # fmt: skip
        right = tl.load(
            weight + column[None, :] * width + place[:, None],
            mask=(column < num_columns)[None, :] & is_wide[:, None], other=0.0,
        )  # fmt: skip
        if upcast:
            left, right = left.to(wide), right.to(wide)
        tile = tl.dot(left, right, tile, input_precision="ieee", out_dtype=wide)
    return tl.where((column < num_columns)[None, :], tile / temperature, float("-inf"))


@triton.jit
def _log1p(value):
    """log(1 + value) with all its digits next to 0 (Kahan); the interpreter has no other."""
    whole = 1 + value
    lost = tl.where(whole == 1, 1.0, whole - 1)
    return tl.where(whole == 1, value, tl.log(whole) * (value / lost))


@triton.jit
def partial_stats(
    hidden, weight, ref_hidden, ref_weight, target, parts, num_tokens, num_columns,
    width, ref_width, temperature, lowest, first_column,
    columns_per_piece, num_pieces,
    tokens: tl.constexpr, columns: tl.constexpr, depth: tl.constexpr, wide: tl.constexpr,
    upcast: tl.constexpr, has_ref: tl.constexpr,
) -> None:  # fmt: skip
    """The eight numbers of `RowStats` for one block of tokens and one piece of the columns."""
    token = (tl.program_id(0) * tokens + tl.arange(0, tokens)).to(tl.int64)
    piece = tl.program_id(1)
    is_token = token < num_tokens
    wanted = tl.load(target + token, mask=is_token, other=-1) - first_column
    top = tl.zeros((tokens,), wide) + lowest
    total = tl.zeros((tokens,), wide)
    others, moment, square, picked = total, total, total, total
    ref_top, ref_total, ref_moment, ref_others, ref_picked = top, total, total, total, total
    end = tl.minimum((piece + 1) * columns_per_piece, num_columns)
    for begin in range(piece * columns_per_piece, end, columns):
        column = (begin + tl.arange(0, columns)).to(tl.int64)
        logits = _logits_tile(
            hidden, weight, token, column, num_tokens, num_columns, width, temperature,
            depth, wide, upcast,
        )  # fmt: skip
        new_top = tl.maximum(top, tl.max(logits, 1))
        weights = tl.exp(logits - new_top[:, None])
        shifted = tl.where(weights > 0, logits - new_top[:, None], 0.0)
        old = tl.exp(top - new_top)
        if has_ref:
            ref = _logits_tile(
                ref_hidden, ref_weight, token, column, num_tokens, num_columns, ref_width,
                temperature, depth, wide, upcast,
            )  # fmt: skip
            new_ref_top = tl.maximum(ref_top, tl.max(ref, 1))
            ref_shifted = ref - new_ref_top[:, None]
            ref_weights, ref_old = tl.exp(ref_shifted), tl.exp(ref_top - new_ref_top)
            is_target = column[None, :] == wanted[:, None]
            ref_picked += tl.sum(tl.where(is_target & (ref_weights > 0), ref, 0.0), 1)
            ref_others *= ref_old
            ref_others += tl.sum(tl.where(is_target, 0.0, ref_weights), 1)
            ref_total = ref_old * ref_total + tl.sum(ref_weights, 1)
            ref_moment = old * (ref_moment + total * (ref_top - new_ref_top))
            ref_moment += tl.sum(weights * tl.where(weights > 0, ref_shifted, 0.0), 1)
            ref_top = new_ref_top
        moment = old * (moment + total * (top - new_top)) + tl.sum(weights * shifted, 1)
        square = old * old * square + tl.sum(weights * weights, 1)
        total = old * total + tl.sum(weights, 1)
        # The target of another shard may have the number of a column that is masked here.
        is_wanted = (column[None, :] == wanted[:, None]) & (column < num_columns)[None, :]
        picked += tl.sum(tl.where(is_wanted, logits, 0.0), 1)
        others = old * others + tl.sum(tl.where(is_wanted, 0.0, weights), 1)
        top = new_top
    # Where every logit is -inf nothing has weight, and the log of 1 stands in for that of 0.
    divisor = tl.where(total > 0, total, 1.0)
    # Next to a target that has nearly all, the sum of the others has the digits, not 1 + it.
    is_here = (wanted >= piece * columns_per_piece) & (wanted < end)
    is_top = is_here & (picked == top)
    log_sum = tl.where(total > 0, tl.where(is_top, _log1p(others), tl.log(divisor)), float("-inf"))
    is_ref = ref_total > 0
    ref_log_sum = tl.log(tl.where(is_ref, ref_total, 1.0))
    ref_log_sum = tl.where(is_here & (ref_picked == ref_top), _log1p(ref_others), ref_log_sum)
    ref_log_sum = tl.where(is_ref, ref_log_sum, float("-inf"))
    entropy = tl.where(total > 0, log_sum - moment / divisor, 0.0)
    kl = tl.where(total > 0, ref_log_sum - ref_moment / divisor - entropy, 0.0)
    stride = num_pieces * num_tokens
    out = parts + piece * num_tokens + token
    tl.store(out, top, mask=is_token)
    tl.store(out + stride, log_sum, mask=is_token)
    tl.store(out + 2 * stride, entropy, mask=is_token)
    tl.store(out + 3 * stride, picked, mask=is_token)
    tl.store(out + 4 * stride, square / (divisor * divisor), mask=is_token)
    if has_ref:
        tl.store(out + 5 * stride, ref_top, mask=is_token)
        tl.store(out + 6 * stride, ref_log_sum, mask=is_token)
        tl.store(out + 7 * stride, kl, mask=is_token)


@triton.jit
def _gradient_tile(
    hidden, weight, ref_hidden, ref_weight, target, per_token,
    token, column, num_tokens, num_columns, width, ref_width, temperature, first_column,
    depth: tl.constexpr, wide: tl.constexpr, upcast: tl.constexpr, has_ref: tl.constexpr,
):  # fmt: skip
    """[tokens, columns] d(loss)/d(logits at temperature 1); 0 outside. See `_per_token`."""
    is_token = token < num_tokens
    row = per_token + token
    top = tl.load(row, mask=is_token, other=0.0)
    log_sum = tl.load(row + num_tokens, mask=is_token, other=0.0)
    slope = tl.load(row + 2 * num_tokens, mask=is_token, other=0.0)
    factor = tl.load(row + 3 * num_tokens, mask=is_token, other=0.0)
    grad_logprob = tl.load(row + 4 * num_tokens, mask=is_token, other=0.0)
    grad_target = tl.load(row + 8 * num_tokens, mask=is_token, other=0.0)
    logits = _logits_tile(
        hidden, weight, token, column, num_tokens, num_columns, width, temperature,
        depth, wide, upcast,
    )  # fmt: skip
    logprob = (logits - top[:, None]) - log_sum[:, None]
    prob = tl.exp(logprob)
    inner = slope[:, None] * tl.where(prob > 0, logprob, 0.0) + factor[:, None]
    if has_ref:
        ref_offset = tl.load(row + 5 * num_tokens, mask=is_token, other=0.0)
        ref_log_sum = tl.load(row + 6 * num_tokens, mask=is_token, other=0.0)
        grad_kl = tl.load(row + 7 * num_tokens, mask=is_token, other=0.0)
        ref = _logits_tile(
            ref_hidden, ref_weight, token, column, num_tokens, num_columns, ref_width,
            temperature, depth, wide, upcast,
        )  # fmt: skip
        ref_logprob = (ref - ref_offset[:, None]) - ref_log_sum[:, None]
        inner -= grad_kl[:, None] * tl.where(prob > 0, ref_logprob, 0.0)
    wanted = tl.load(target + token, mask=is_token, other=-1) - first_column
    is_wanted = column[None, :] == wanted[:, None]
    pull = tl.where(is_wanted, grad_target[:, None], -grad_logprob[:, None] * prob)
    grad = prob * inner + pull
    return tl.where(is_token[:, None] & (column < num_columns)[None, :], grad / temperature, 0.0)


@triton.jit
def grad_hidden(
    hidden, weight, ref_hidden, ref_weight, target, per_token, out,
    num_tokens, num_columns, width, ref_width, temperature, first_column,
    tokens: tl.constexpr, columns: tl.constexpr, depth: tl.constexpr, wide: tl.constexpr,
    upcast: tl.constexpr, has_ref: tl.constexpr,
) -> None:  # fmt: skip
    """Add to out [T, D] gradient tile @ weight, for one block of tokens."""
    token = (tl.program_id(0) * tokens + tl.arange(0, tokens)).to(tl.int64)
    for begin in range(0, num_columns, columns):
        column = (begin + tl.arange(0, columns)).to(tl.int64)
        grad = _gradient_tile(
            hidden, weight, ref_hidden, ref_weight, target, per_token, token, column, num_tokens,
            num_columns, width, ref_width, temperature, first_column, depth, wide, upcast, has_ref,
        )  # fmt: skip
        for start in range(0, width, depth):
            place = start + tl.arange(0, depth)
            mask = (token < num_tokens)[:, None] & (place < width)[None, :]
            right = tl.load(
                weight + column[:, None] * width + place[None, :],
                mask=(column < num_columns)[:, None] & (place < width)[None, :], other=0.0,
            )  # fmt: skip
            if upcast:
                right = right.to(wide)
            address = out + token[:, None] * width + place[None, :]
            product = tl.dot(
                grad.to(right.dtype), right, input_precision="ieee", out_dtype=wide
            )  # fmt: skip
            tl.store(address, tl.load(address, mask=mask, other=0.0) + product, mask=mask)
            # The next sum over columns may load what another thread of this program stored.
            tl.debug_barrier()


@triton.jit
def grad_weight(
    hidden, weight, ref_hidden, ref_weight, target, per_token, out,
    num_tokens, num_columns, width, ref_width, temperature, first_column,
    tokens: tl.constexpr, columns: tl.constexpr, depth: tl.constexpr, wide: tl.constexpr,
    upcast: tl.constexpr, has_ref: tl.constexpr,
) -> None:  # fmt: skip
    """Add to out [V, D] gradient tile transposed @ hidden, for one block of columns."""
    column = (tl.program_id(0) * columns + tl.arange(0, columns)).to(tl.int64)
    for begin in range(0, num_tokens, tokens):
        token = (begin + tl.arange(0, tokens)).to(tl.int64)
        grad = _gradient_tile(
            hidden, weight, ref_hidden, ref_weight, target, per_token, token, column, num_tokens,
            num_columns, width, ref_width, temperature, first_column, depth, wide, upcast, has_ref,
        )  # fmt: skip
        for start in range(0, width, depth):
            place = start + tl.arange(0, depth)
            mask = (column < num_columns)[:, None] & (place < width)[None, :]
            right = tl.load(
                hidden + token[:, None] * width + place[None, :],
                mask=(token < num_tokens)[:, None] & (place < width)[None, :], other=0.0,
            )  # fmt: skip
            if upcast:
                right = right.to(wide)
            address = out + column[:, None] * width + place[None, :]
            product = tl.dot(
                tl.trans(grad).to(right.dtype), right, input_precision="ieee", out_dtype=wide
            )  # fmt: skip
            tl.store(address, tl.load(address, mask=mask, other=0.0) + product, mask=mask)
            tl.debug_barrier()
