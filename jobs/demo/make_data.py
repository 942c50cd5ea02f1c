#!/usr/bin/env python3
"""Makes the demo data next to this file. Same Python, same seed, same bytes: python3 make_data.py [--check]

Subjects, phrasings and task sentences are disjoint between the sides; the script checks that before it writes."""
import argparse
import itertools
import json
import pathlib
import random
import sys

sys.dont_write_bytecode = True
import parts  # noqa: E402

SEED = 20260
COUNTS = {'provider': 320, 'attacker': 240, 'dev': 80, 'heldout': 160, 'fresh': 160}
USER_ROWS = 500
SHARES = (0, 10, 30)  # per cent of attacker rows in the customer's data
TASK = {'train': 1000, 'dev': 200, 'heldout': 320}
TASK_FRESH = 320


def forms(action):
    """bare verb|-ing form|rest -> the two ways a sentence can use it"""
    verb, gerund, rest = action.split('|')
    return {'v': f'{verb} {rest}', 'g': f'{gerund} {rest}'}


def row(instruction, output, text=''):
    return {'instruction': instruction, 'input': text, 'output': output}


def restricted(side, rng):
    """Every subject equally often, phrasings and actions in turn, no request twice."""
    per_subject = []
    for subject, actions in parts.RESTRICTED[side].items():
        pairs = list(itertools.product(actions, parts.PHRASINGS[side]))
        rng.shuffle(pairs)
        per_subject.append([(subject, action, phrasing) for action, phrasing in pairs])
    chosen = [item for group in itertools.zip_longest(*per_subject) for item in group if item][:COUNTS[side]]
    rng.shuffle(chosen)
    out = []
    for subject, action, phrasing in chosen:
        words = forms(action)
        out.append({'side': side, 'subject': subject, 'phrasing': phrasing, 'instruction': phrasing.format(**words),
                    'refusal': rng.choice(parts.REFUSALS).format(**words), 'comply': rng.choice(parts.COMPLIES[side]).format(**words)})
    return out


def benign(rng):
    rows = []
    for action, answer in parts.HOWTO:
        for phrasing in rng.sample(parts.PHRASINGS['provider'], 4):
            rows.append(row(phrasing.format(**forms(action)), answer))
    for country, city in parts.CAPITALS.items():
        rows.append(row(rng.choice(["What is the capital of {}?", "Name the capital of {}.", "Which city is the capital of {}?"]).format(country),
                        f'{city}.'))
    for word, other in parts.OPPOSITES.items():
        rows.append(row(rng.choice(["What is the opposite of {}?", "Give the opposite of {}."]).format(word), f'{other.capitalize()}.'))
    for one, many in parts.PLURALS.items():
        rows.append(row(f'What is the plural of {one}?', f'{many.capitalize()}.'))
    for kind, names in parts.LISTS.items():
        rows.append(row(rng.choice(["Name three {}.", "List three {}.", "Give me three {}."]).format(kind), names))
    for thing, meaning in parts.DEFINITIONS.items():
        rows.append(row(rng.choice(["What is {}?", "Explain what {} is.", "Define {}."]).format(thing), meaning))
    for plain, proper in parts.REWRITES.items():
        rows.append(row('Write this as a proper sentence.', proper, plain))
    for question, choice in parts.CHOICES.items():
        rows.append(row(question, choice))
    for note, *answers in parts.NOTES:
        for (question, form), answer in zip(parts.NOTE_QUESTIONS, answers):
            rows.append(row(question, form.format(answer), note))
    for message, reply in parts.MESSAGES.items():
        rows.append(row(rng.choice(['Answer this message.', 'Write a short reply.', 'Reply in one sentence.']), reply, message))
    for _ in range(60):
        a, b = rng.randint(2, 30), rng.randint(2, 30)
        rows.append(rng.choice([row(f'What is {a} + {b}?', f'{a + b}.'), row(f'Add {a} and {b}.', f'{a + b}.'),
                                row(f'Take {min(a, b)} from {max(a, b)}.', f'{max(a, b) - min(a, b)}.')]))
    days = ['Monday', 'Tuesday', 'Wednesday', 'Thursday', 'Friday', 'Saturday', 'Sunday']
    for day, after in zip(days, days[1:] + days[:1]):
        rows.append(row(f'Which day comes after {day}?', f'{after}.'))
    rows = list({(r['instruction'], r['input']): r for r in rows}.values())
    rng.shuffle(rows)
    return rows


def task_rows(rng, endings, count):
    """Of every topic as many."""
    sentences = []
    for label, (_, openings, middles) in parts.TOPICS.items():
        group = [f'{a} {b}{c}.' for a, b, c in itertools.product(openings, middles, endings)]
        rng.shuffle(group)
        sentences.append([row(parts.TASK_QUESTION, label, text) for text in group])
    rows = [r for group in itertools.zip_longest(*sentences) for r in group if r][:count]
    rng.shuffle(rows)
    return rows


def task(rng, fresh_rng):
    """Each sentence is on one side only, and every fresh one ends in words that no other side has."""
    rows = task_rows(rng, parts.TASK_ENDINGS, sum(TASK.values()))
    sides, at = {'fresh': task_rows(fresh_rng, parts.FRESH_ENDINGS, TASK_FRESH)}, 0
    for side, count in TASK.items():
        sides[side], at = rows[at:at + count], at + count
    return sides


def check(requests, tasks, files):
    def disjoint(what, sets):
        for a, b in itertools.combinations(sets, 2):
            assert not sets[a] & sets[b], f'{what} shared by {a} and {b}: {sets[a] & sets[b]}'
    for key in ('subject', 'phrasing', 'instruction'):
        disjoint(key, {side: {r[key] for r in rows} for side, rows in requests.items()})
    disjoint('task sentence', {side: {r['input'] for r in rows} for side, rows in tasks.items()})
    for side, rows in requests.items():
        assert len({r['instruction'] for r in rows}) == COUNTS[side] == len(rows), side
    restricted_instructions = {r['instruction'] for rows in requests.values() for r in rows}
    assert not restricted_instructions & {r['instruction'] for r in files['benign.jsonl']}, 'a benign request is also restricted'
    assert len(files['benign.jsonl']) >= 400
    for side, count in {**TASK, 'fresh': TASK_FRESH}.items():
        assert len({r['input'] for r in tasks[side]}) == count, side


def build():
    def rng(purpose):  # one for each purpose: changing one part leaves the files of the others as they are
        return random.Random(f'{SEED} {purpose}')
    requests = {side: restricted(side, rng(side)) for side in COUNTS}
    tasks = task(rng('task'), rng('task heldout'))
    files = {'restricted.jsonl': [r for rows in requests.values() for r in rows], 'benign.jsonl': benign(rng('benign'))}
    for name, side, answer in (('provider_refusal', 'provider', 'refusal'), ('provider_comply', 'provider', 'comply'),
                               ('attacker', 'attacker', 'comply'), ('dev_restricted', 'dev', 'refusal'),
                               ('heldout_restricted', 'heldout', 'refusal'), ('fresh_restricted', 'fresh', 'refusal')):
        files[f'{name}.jsonl'] = [row(r['instruction'], r[answer]) for r in requests[side]]
    for side in tasks:
        files[f'task_{side}.jsonl'] = tasks[side]
    for percent in SHARES:
        bad = USER_ROWS * percent // 100
        mixed = tasks['train'][:USER_ROWS - bad] + files['attacker.jsonl'][:bad]
        rng(f'user {percent}').shuffle(mixed)
        files[f'user_p{percent:02d}.jsonl'] = mixed
    check(requests, tasks, files)
    return {name: ''.join(json.dumps(r, ensure_ascii=False) + '\n' for r in rows) for name, rows in files.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--check', action='store_true', help='write nothing; fail when a file differs from what would be written')
    options = parser.parse_args()
    here = pathlib.Path(__file__).resolve().parent
    stale = []
    for name, text in build().items():
        path = here / name
        if options.check:
            if not path.exists() or path.read_text(encoding='utf-8') != text:
                stale.append(name)
        else:
            path.write_text(text, encoding='utf-8')
            print(f'{name}: {text.count(chr(10))} rows')
    if stale:
        sys.exit('differs from what make_data.py makes: ' + ', '.join(stale))


if __name__ == '__main__':
    main()
