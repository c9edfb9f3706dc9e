# refused_test.sh FILE COMPILER ARGUMENTS: the compiler refuses exactly the lines of FILE that say
# "// refused: TEXT", each with that text.
set -u
file=$1
shift
errors=$(LC_ALL=C "$@" -fsyntax-only "$file" 2>&1)
name=$(basename "$file")
marked=$(grep -n '// refused: ' "$file")
status=0
while IFS= read -r mark; do
  line=${mark%%:*}
  # What the compiler says of an instantiation begins with the place that asked for it.
  if ! grep -A4 "$name:$line:" <<< "$errors" | grep -qF -- "${mark##*// refused: }"; then
    echo "line $line was not refused: ${mark##*// refused: }"
    status=1
  fi
done <<< "$marked"
others=$(comm -23 <(grep -oP "^\S*$name:\K\d+" <<< "$errors" | sort -u) <(cut -d: -f1 <<< "$marked" | sort -u))
[ -z "$others" ] || { echo "also refused: lines" $others; status=1; }
[ $status = 0 ] || echo "$errors"
# The report that tools/test.sh counts cases from, as GoogleTest's programs write it.
if [ -n "${GTEST_OUTPUT:-}" ]; then
  printf '<testsuites tests="%d" failures="%d" errors="0">\n</testsuites>\n' \
    "$(wc -l <<< "$marked")" "$status" > "${GTEST_OUTPUT#xml:}sdk_refused_test.xml"
fi
exit $status
