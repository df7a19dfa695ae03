"""The operations that a graph may have: those that compute, and no others.

A graph is a program. TensorFlow has operations that read and write files, call Python, open connections or
end the process, and such an operation may hide in a function that another function calls. Therefore this
module reads a graph and all of its functions before TensorFlow loads them, and refuses every operation that
is not in the list `ALLOWED`. See https://github.com/tensorflow/tensorflow/blob/master/SECURITY.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from pipeline.errors import DamagedError, UntrustedError

# Names stand here without the number of their version (V2). The list says what is allowed, not what is
# forbidden, so that an operation of a later TensorFlow is refused until somebody has read what it does.
# Left out are all operations that open files (also ImmutableConst, CacheDataset, Print and
# InitializeTableFromTextFile, whose names do not say so), gradients, queues and quantized kernels.
ALLOWED = frozenset(
    name
    for line in """
    # arrays
    BatchToSpace BatchToSpaceND Bitcast BitwiseAnd BitwiseOr BitwiseXor BroadcastArgs
    BroadcastGradientArgs BroadcastTo CheckNumerics Concat ConcatOffset ConjugateTranspose Const
    DeepCopy DepthToSpace Dequantize Diag DiagPart EditDistance Empty EnsureShape ExpandDims
    ExtractImagePatches ExtractVolumePatches FakeQuantWithMinMaxArgs FakeQuantWithMinMaxVars
    FakeQuantWithMinMaxVarsPerChannel Fill Fingerprint Gather GatherNd GuaranteeConst Identity
    IdentityN Invert InvertPermutation LeftShift ListDiff LowerBound MatrixBandPart MatrixDiag
    MatrixDiagPart MatrixSetDiag MirrorPad OneHot OnesLike Pack Pad Placeholder
    PlaceholderWithDefault PopulationCount PreventGradient Quantize QuantizeAndDequantize Rank
    Reshape ResourceStridedSliceAssign Reverse ReverseSequence RightShift Roll ScatterNd
    ScatterNdNonAliasingAdd Shape ShapeN Size Slice Snapshot SpaceToBatch SpaceToBatchND
    SpaceToDepth Split SplitV Squeeze StopGradient StridedSlice StridedSliceAssign TensorScatterAdd
    TensorScatterMax TensorScatterMin TensorScatterSub TensorScatterUpdate TensorStridedSliceUpdate
    Tile Transpose Unique UniqueWithCounts Unpack UnravelIndex UpperBound Where ZerosLike
    # mathematics
    Abs AccumulateN Acos Acosh Add AddN All Angle Any ApproximateEqual ArgMax ArgMin Asin Asinh Atan
    Atan2 Atanh BandedTriangularSolve BatchMatMul Betainc Bincount Bucketize Cast Ceil Cholesky
    ClipByValue Complex ComplexAbs Conj Cos Cosh Cross Cumprod Cumsum CumulativeLogsumexp Dawsn
    DenseBincount Digamma Div DivNoNan Eig Einsum Equal Erf Erfc Erfinv EuclideanNorm Exp Expint
    Expm1 FFT FFT2D FFT3D FFTND Floor FloorDiv FloorMod FresnelCos FresnelSin Greater GreaterEqual
    HistogramFixedWidth IFFT IFFT2D IFFT3D IFFTND IRFFT IRFFT2D IRFFT3D IRFFTND Igamma Igammac Imag
    IsFinite IsInf IsNan Less LessEqual Lgamma LinSpace Log Log1p LogMatrixDeterminant LogicalAnd
    LogicalNot LogicalOr Lu MatMul MatrixDeterminant MatrixExponential MatrixInverse MatrixLogarithm
    MatrixSolve MatrixSolveLs MatrixSquareRoot MatrixTriangularSolve Max Maximum Mean Min Minimum
    Mod Mul MulNoNan Ndtri Neg NextAfter NotEqual Polygamma Pow Prod Qr QuantizeDownAndShrinkRange
    RFFT RFFT2D RFFT3D RFFTND RaggedBincount Range Real RealDiv Reciprocal Rint Round Rsqrt
    SegmentMax SegmentMean SegmentMin SegmentProd SegmentSum Select SelfAdjointEig Sigmoid Sign Sin
    Sinh SobolSample SparseBincount SparseMatMul Spence Sqrt Square SquaredDifference Sub Sum Svd
    Tan Tanh TridiagonalMatMul TridiagonalSolve TruncateDiv TruncateMod UnsortedSegmentMax
    UnsortedSegmentMin UnsortedSegmentProd UnsortedSegmentSum Xdivy Xlog1py Xlogy Zeta
    # networks
    ApproxTopK AvgPool AvgPool3D BatchNormWithGlobalNormalization BiasAdd BlockLSTM
    CTCBeamSearchDecoder CTCGreedyDecoder CTCLoss Conv Conv2D Conv3D DataFormatDimMap
    DataFormatVecPermute DepthwiseConv2dNative Dilation2D Elu FractionalAvgPool FractionalMaxPool
    FusedBatchNorm FusedPadConv2D FusedResizeAndPadConv2D GRUBlockCell InTopK IsotonicRegression
    L2Loss LRN LSTMBlockCell LeakyRelu LogSoftmax MaxPool MaxPool3D MaxPoolWithArgmax NthElement
    Relu Relu6 Selu Softmax SoftmaxCrossEntropyWithLogits Softplus Softsign
    SparseSoftmaxCrossEntropyWithLogits TopK
    # random
    ParameterizedTruncatedNormal RandomGamma RandomPoisson RandomShuffle RandomStandardNormal
    RandomUniform RandomUniformInt RngReadAndSkip RngSkip StatefulRandomBinomial
    StatefulStandardNormal StatefulTruncatedNormal StatefulUniform StatefulUniformFullInt
    StatefulUniformInt StatelessMultinomial StatelessParameterizedTruncatedNormal
    StatelessRandomBinomial StatelessRandomGamma StatelessRandomGetAlg StatelessRandomGetKeyCounter
    StatelessRandomGetKeyCounterAlg StatelessRandomNormal StatelessRandomPoisson
    StatelessRandomUniform StatelessRandomUniformFullInt StatelessRandomUniformInt StatelessShuffle
    StatelessTruncatedNormal TruncatedNormal
    # text, images, examples
    AdjustContrast AdjustHue AdjustSaturation AsString CombinedNonMaxSuppression CropAndResize
    DecodeAndCropJpeg DecodeBase64 DecodeBmp DecodeCSV DecodeGif DecodeImage DecodeJpeg DecodeJxl
    DecodePaddedRaw DecodePng DecodeRaw DecodeWebP DrawBoundingBoxes EncodeBase64 EncodeJpeg
    EncodeJpegVariableQuality EncodePng ExtractGlimpse ExtractJpegShape GenerateBoundingBoxProposals
    HSVToRGB ImageProjectiveTransform NonMaxSuppression NonMaxSuppressionWithOverlaps ParseExample
    ParseSequenceExample ParseSingleExample ParseSingleSequenceExample ParseTensor RGBToHSV
    RandomCrop ReduceJoin RegexFullMatch RegexReplace ResizeArea ResizeBicubic ResizeBilinear
    ResizeNearestNeighbor SampleDistortedBoundingBox ScaleAndTranslate SerializeTensor
    StatelessSampleDistortedBoundingBox StaticRegexFullMatch StaticRegexReplace StringFormat
    StringJoin StringLength StringLower StringNGrams StringSplit StringStrip StringToHashBucket
    StringToHashBucketFast StringToHashBucketStrong StringToNumber StringUpper Substr UnicodeDecode
    UnicodeDecodeWithOffsets UnicodeEncode UnicodeScript UnicodeTranscode UnsortedSegmentJoin
    # sparse, ragged, sets
    DenseToDenseSetOperation DenseToSparseSetOperation DeserializeManySparse DeserializeSparse
    RaggedCross RaggedFillEmptyRows RaggedGather RaggedRange RaggedTensorFromVariant
    RaggedTensorToSparse RaggedTensorToTensor RaggedTensorToVariant SerializeManySparse
    SerializeSparse SetSize SparseAdd SparseConcat SparseCross SparseCrossHashed SparseFillEmptyRows
    SparseReorder SparseReshape SparseSplit SparseTensorDenseAdd SparseTensorDenseMatMul
    SparseToDense SparseToSparseSetOperation
    # control flow, functions
    Case Enter Exit FakeParam For If LoopCond Merge NextIteration NoOp PartitionedCall
    StatefulPartitionedCall StatelessCase StatelessIf StatelessWhile Switch ToBool While
    # state
    Assert Assign AssignAdd AssignAddVariableOp AssignSub AssignSubVariableOp AssignVariableOp
    DestroyResourceOp DisableCopyOnRead DynamicPartition DynamicStitch EmptyTensorList HashTable
    InitializeTable IsVariableInitialized LookupTableExport LookupTableFind LookupTableImport
    LookupTableInsert LookupTableRemove LookupTableSize MutableDenseHashTable MutableHashTable
    ParallelDynamicStitch ReadVariableOp ResourceGather ResourceGatherNd TensorArray
    TensorArrayClose TensorArrayConcat TensorArrayGather TensorArrayRead TensorArrayScatter
    TensorArraySize TensorArraySplit TensorArrayWrite TensorListConcat TensorListConcatLists
    TensorListElementShape TensorListFromTensor TensorListGather TensorListGetItem TensorListLength
    TensorListPopBack TensorListPushBack TensorListPushBackBatch TensorListReserve TensorListResize
    TensorListScatter TensorListScatterIntoExistingList TensorListSetItem TensorListSplit
    TensorListStack VarHandleOp VarIsInitializedOp Variable VariableShape
    # input pipelines
    AnonymousIterator BatchDataset ConcatenateDataset DatasetCardinality DatasetToSingleElement
    FilterDataset FinalizeDataset FlatMapDataset GetOptions InterleaveDataset Iterator
    IteratorGetNext IteratorGetNextAsOptional IteratorToStringHandle MakeIterator MapDataset
    ModelDataset OneShotIterator OptionalFromValue OptionalGetValue OptionalHasValue OptionalNone
    OptionsDataset PaddedBatchDataset ParallelBatchDataset ParallelFilterDataset
    ParallelInterleaveDataset ParallelMapDataset PrefetchDataset RangeDataset ReduceDataset
    RepeatDataset ShardDataset ShuffleAndRepeatDataset ShuffleDataset SkipDataset
    SparseTensorSliceDataset TakeDataset TensorDataset TensorSliceDataset UnwrapDatasetVariant
    WindowDataset WindowOp ZipDataset
    """.splitlines()
    if not line.lstrip().startswith("#")
    for name in line.split()
)

RESTORING = frozenset({"RestoreV2"})
"""Operations that read a checkpoint: allowed only in the nodes that restore the graph's variables."""

SAVING = frozenset({"MergeV2Checkpoints", "SaveV2", "ShardedFilename"})
"""Operations that write a checkpoint: allowed only in the nodes that the graph's `Saver` runs."""

OTHER_FORMS = ("saved_model.pbtxt", "saved_model.cpb")
"""Further files that TensorFlow loads as a SavedModel, some of them in place of `saved_model.pb`."""

CALL = "()"
"""Suffix of a function's name in `_Graph.parts`: a function and a node may have the same name."""

_trusted: ContextVar[frozenset[str]] = ContextVar("trusted", default=frozenset())


@contextmanager
def trusting(names: Iterable[str]) -> Iterator[None]:
    """Allow further operations in all graphs that are checked inside the `with` block.

    Args:
        names: The operations, as the user lists them in `trust=[...]`.
    """
    before = _trusted.set(_trusted.get() | frozenset(names))
    try:
        yield
    finally:
        _trusted.reset(before)


def check_saved_model(directory: Path) -> None:
    """Check all graphs of a SavedModel, without loading it.

    Raises:
        DamagedError: `saved_model.pb` is missing or cannot be parsed.
        UntrustedError: A graph has an operation that is not allowed, or the directory has another form of
            the SavedModel beside `saved_model.pb`.
    """
    path = directory / "saved_model.pb"
    # TensorFlow would load another form than the one that is checked here.
    for name in OTHER_FORMS:
        if (directory / name).exists():
            raise UntrustedError(f"{directory} must be a SavedModel with {path.name} alone. It has {name}.")
    from tensorflow.core.protobuf import saved_model_pb2

    saved_model = saved_model_pb2.SavedModel()
    try:
        saved_model.ParseFromString(path.read_bytes())
    except Exception as error:  # The parser's errors share no type.
        raise DamagedError(f"{directory} must be a whole SavedModel. Reading it failed: {error}") from error
    for meta in saved_model.meta_graphs:
        check_meta_graph(meta, path)


def check_meta_graph(meta: Any, path: Path) -> None:
    """Check a graph and its functions.

    Args:
        meta: A `MetaGraphDef`.
        path: The file that holds it, for the message.

    Raises:
        UntrustedError: The graph has an operation that is not allowed.
    """
    graph = _Graph(meta.graph_def)
    # Every SavedModel reads and writes checkpoints. Those operations are accepted only where the Saver
    # runs them: a signature that reaches the same nodes brings them into `rest`, where they are refused.
    saving = graph.reached([meta.saver_def.save_tensor_name])
    restoring = graph.reached([meta.saver_def.restore_op_name])
    rest = graph.reached([*(graph.parts.keys() - saving - restoring), *_entries(meta)])
    found = (
        graph.operations(saving) - SAVING | graph.operations(restoring) - RESTORING | graph.operations(rest)
    ) - ALLOWED
    found -= _trusted.get()
    if found:
        raise UntrustedError(
            f"{path} must have operations that compute, and no others. It has "
            f"{', '.join(sorted(found))}. If you know what for, add trust=[{','.join(sorted(found))}]."
        )


def _entries(meta: Any) -> Iterator[str]:
    """Yield the names of the tensors, nodes and functions from which a loader or a caller starts."""
    yield from map(_function, meta.object_graph_def.concrete_functions)
    for item in meta.object_graph_def.nodes:
        yield from map(_function, item.function.concrete_functions)
        yield _function(item.bare_concrete_function.concrete_function_name)
    for signature in meta.signature_def.values():
        for tensor in (*signature.inputs.values(), *signature.outputs.values()):
            yield tensor.name
            yield from (part.name for part in tensor.composite_tensor.components)
    for collection in meta.collection_def.values():
        yield from collection.node_list.value


class _Graph:
    """The parts of a graph, and which of them call or read which.

    Attributes:
        parts: For the name of a node, that node alone; for the name of a function, as `_function` marks it,
            the nodes of its body.
    """

    def __init__(self, graph_def: Any) -> None:
        self.parts: dict[str, Sequence[Any]] = {node.name: [node] for node in graph_def.node}
        for function in graph_def.library.function:
            self.parts[_function(function.signature.name)] = function.node_def

    def reached(self, names: Iterable[str]) -> set[str]:
        """Return the names of all parts that some parts need, directly or indirectly, with those parts.

        Args:
            names: Names of nodes, of tensors (`node:0`), of control inputs (`^node`) or of functions.
        """
        pending, found = list(names), set()
        while pending:
            name = pending.pop().removeprefix("^").partition(":")[0]
            if name not in found and name in self.parts:
                found.add(name)
                for node in self.parts[name]:
                    pending += _called(node)
                    # Inputs in a function's body name nodes of that body, which are all in this part.
                    pending += [] if name.endswith(CALL) else node.input
        return found

    def operations(self, names: Iterable[str]) -> set[str]:
        """Return the operations of some parts; names of allowed kinds lose their version (`MatMulV2`)."""
        found = {node.op for name in names for node in self.parts[name]}
        # A node's operation may be the name of a function. `reached` has followed it into its body.
        found = {operation for operation in found if _function(operation) not in self.parts}
        # RESTORING and SAVING list the version, too: `Save` and `Restore`, their version 1, stay refused.
        return {op if op in RESTORING | SAVING else re.sub(r"[vV]\d+$", "", op) for op in found}


def _called(node: Any) -> Iterator[str]:
    """Yield the functions that a node calls, by an attribute or by the name of its operation."""
    yield _function(node.op)
    yield from _named(node.attr)


def _named(attributes: Mapping[str, Any]) -> Iterator[str]:
    """Yield the functions that attributes name; a function's own attributes may name further ones."""
    for value in attributes.values():
        for function in (value.func, *value.list.func):
            yield _function(function.name)
            yield from _named(function.attr)


def _function(name: str) -> str:
    """Return the key of a function in `_Graph.parts`, which differs from that of a node of this name."""
    return name + CALL
