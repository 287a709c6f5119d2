#!/usr/bin/env bash
# Files are checked where git knows them and the right clang-format is there, and skipped with a word elsewhere.
# shellcheck disable=SC2016  # stubs expand what they are given when they run
. "$(dirname -- "$0")/stubs.sh"
cd -- "$work/gradus"

stub clang-format <<'STUB'
if [ "$1" = --version ]; then
  echo "Debian clang-format version ${RELEASE:-14.0.6}"
else
  ! grep -l badly "${@:3}"
fi
STUB
mkdir src
echo "well" >"src/with space.cpp"
echo "badly" >src/untracked.cpp
style=(scripts/check_style.sh)
PATH=$(only_stubs_and bash basename dirname env git grep xargs mkdir mv rm)

expect 0 "formatting: not checked: git knows no files here (fatal: not a git repository" "${style[@]}"
expect 1 "git knows no files here" "${style[@]}" --required

git init -q
expect 0 "formatting: not checked: git tracks none of the files here" "${style[@]}"
git add "src/with space.cpp"
expect 0 "formatting: clean" "${style[@]}"
expect 0 "formatting: clean" "${style[@]}" --required
expect 0 "formatting: clean" env LC_ALL=C LANG=tr_TR.UTF-8 HOME= CDPATH=/:/usr "${style[@]}"
(cd / && expect 0 "formatting: clean" "$work/gradus/scripts/check_style.sh" && [ "$failures" -eq 0 ]) || failures=1
git add src/untracked.cpp
expect 123 "src/untracked.cpp" "${style[@]}"

expect 0 "formatting: not checked: git knows no files here (fatal: detected dubious ownership" \
  env GIT_TEST_ASSUME_DIFFERENT_OWNER=1 "${style[@]}"
expect 0 "formatting: not checked: there is no clang-format 14 here" env RELEASE=19.1.7 "${style[@]}"
expect 1 "there is no clang-format 14 here" env RELEASE=19.1.7 "${style[@]}" --required
mv .git "$work/"
expect 0 "formatting: not checked: git knows no files here (the folder lies in another repository)" "${style[@]}"
rm "$work/stubs/git"
expect 0 "formatting: not checked: there is no git here" "${style[@]}"
finish
